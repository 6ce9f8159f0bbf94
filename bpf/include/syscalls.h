/* SPDX-License-Identifier: GPL-2.0-only */
/* What syscalls.bpf.c shares with user space. garrison.minion.enforcers.syscalls.layout holds the other half. */
#ifndef GARRISON_SYSCALLS_H
#define GARRISON_SYSCALLS_H

#include "actor.h"
#include "program_row.h"

#define CALLS 512 /* system call numbers that can be watched, of x86_64 and aarch64 */
#define BITS (CALLS / 64)

/* Which calls are looked at at all: the first question of every system call of the machine, so it comes without a walk. */
struct wanted {
	__u64 enter[BITS];   /* some rule names the call */
	__u64 leave[BITS];   /* a call that was entered under this or an earlier generation may still return */
	__u64 sourced[BITS]; /* some rule names the call and a source: the program must be told first */
	__u64 placed[BITS];  /* some rule for workloads names the call: the workload must be told first */
};
_Static_assert(sizeof(struct wanted) == 256, "struct wanted");

/* Where the paths of a call are among its arguments. */
#define NONE (-1)	 /* no such argument: fd: the working directory; text: the descriptor itself is the object */
#define CALL_NO_RETURN 1 /* it does not come back to where it was called */
#define CALL_EXEC 2	 /* a thread that is not its process's first comes back under another number */
struct call_shape {
	__u8 paths;
	__u8 flags;
	struct {
		__s8 fd;
		__s8 text;
	} path[2];
	__u8 pad[2];
};
_Static_assert(sizeof(struct call_shape) == 8, "struct call_shape");

/* What is reported of a program: for the host's profile by rules for all, for another by its rules for workloads alone. */
struct row {
	__u32 generation;
	__u32 index; /* in the generation's list of rows */
	__u32 flags;
	__u32 pad;
	__u64 calls[BITS]; /* whatever they are given */
	__u64 paths[BITS]; /* when a path of theirs may be one of ``targets`` */
};
_Static_assert(sizeof(struct row) == 144, "struct row");

#define TARGET_BYTES 256
struct target_key {
	__u32 bits;
	char path[TARGET_BYTES];
};

#define NAMES_BYTES 512	/* of names; a longer path is cut and marked */
#define TEXT_BYTES 768	/* of a path as the caller wrote it */

struct call_path {
	__s32 base_used; /* bytes of ``base``; negative: -1 - bytes, and the path was cut or there is none */
	__s32 text_used; /* bytes of ``text`` with its NUL; 0: the call takes a descriptor; negative: it could not be read */
	__u64 address;	 /* of the text in the process */
	char base[NAMES_BYTES + 256];
	char text[TEXT_BYTES];
};
_Static_assert(sizeof(struct call_path) == 1552, "struct call_path");

#define ROWS 3	       /* the host's, that of the caller's workload, that of a container which it has left */
#define NO_ROW (~0U) /* it does not speak of the call */

struct call_record {
	struct actor actor;
	__s64 result;
	__u32 generation;
	__u32 call;
	__u32 row[ROWS]; /* indices of those that let it through */
	__u32 profile;	 /* of the caller's workload; 0 where no rule for workloads names the call */
	__u32 also;	 /* of a container that it has left; 0 for none */
	__u8 paths;    /* how many of ``path`` there are; the record ends with them */
	__u8 returned; /* ``result`` is known */
	__u8 pad[2];
	__s32 exe_used; /* as base_used */
	__u32 pad2;
	__u64 args[8]; /* six of them */
	char exe[NAMES_BYTES + 256];
	struct call_path path[2];
};
_Static_assert(sizeof(struct call_record) == 200 + 768 + 2 * 1552, "struct call_record");

struct drop_key {
	__u32 generation;
	__u32 row;
	__u32 call;
};
_Static_assert(sizeof(struct drop_key) == 12, "struct drop_key");

/* Indices of the map ``counters``. */
enum counter {
	COUNT_SEEN,	  /* calls reported, also those that were lost */
	COUNT_UNRESOLVED, /* calls of a program whose path could not be told */
	COUNT_DROPPED,	  /* records that did not fit into the ring; by row and call in ``drops`` */
	COUNT_UNNAMED,	  /* of those, records that ``drops`` had no room for either */
	COUNT_COMPAT,	  /* 32-bit calls, which are numbered otherwise and not looked at */
	COUNTERS,
};

#endif

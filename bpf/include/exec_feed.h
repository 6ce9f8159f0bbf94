/* SPDX-License-Identifier: GPL-2.0-only */
/* What exec_feed.bpf.c shares with garrison.minion.enforcers.exec_feed. */
#ifndef GARRISON_EXEC_FEED_H
#define GARRISON_EXEC_FEED_H

#include "actor.h"

enum record_kind {
	RECORD_EXEC = 1,
	RECORD_EXIT = 2,
};

/* Begins every record. After an exec's head follow three areas: exe, cwd (names, the last component first), arguments. */
struct feed_head {
	struct actor actor;
	__u32 kind;
	__s32 exit_code; /* exit: as wait() gives it */
	__u64 exec_ns;	 /* exit: CLOCK_MONOTONIC of the exec */
	__s32 exe_used;	 /* bytes; negative: -1 - bytes, and the path was cut */
	__s32 cwd_used;
	__u32 args_used;  /* bytes copied */
	__u32 args_total; /* bytes there were */
};
_Static_assert(sizeof(struct feed_head) == 88 + 32, "struct feed_head");

/* A record of one of two sizes: most commands fit the small one. */
#define DEFINE_RECORD(NAME, PATH, ARGS)                                                                                \
	struct NAME {                                                                                                  \
		struct feed_head head;                                                                                 \
		char exe[(PATH) + 256];                                                                                \
		char cwd[(PATH) + 256];                                                                                \
		char args[ARGS];                                                                                       \
	}

#define SMALL_PATH 128
#define SMALL_ARGS 512
#define LARGE_PATH 4096
#define LARGE_ARGS 32768 /* EVENT_ARGS_MAX * EVENT_ARG_MAX_CHARS */

DEFINE_RECORD(small_record, SMALL_PATH, SMALL_ARGS);
DEFINE_RECORD(large_record, LARGE_PATH, LARGE_ARGS);
_Static_assert(sizeof(struct small_record) == 120 + 2 * (SMALL_PATH + 256) + SMALL_ARGS, "struct small_record");
_Static_assert(sizeof(struct large_record) == 120 + 2 * (LARGE_PATH + 256) + LARGE_ARGS, "struct large_record");

/* Indices of the map ``counters``. */
enum feed_counter {
	FEED_EXECS,
	FEED_EXITS,
	FEED_DROPPED_EXECS,
	FEED_DROPPED_EXITS,
	FEED_UNTRACKED, /* execs whose exit will not be reported: ``running`` is full */
	COUNTERS,
};

#endif

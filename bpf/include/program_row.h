/* SPDX-License-Identifier: GPL-2.0-only */
/*
 * A generation as one hash map of rows: one row for each program or directory that rules name as a source, and one for all other
 * programs. Its includer says what is in a row. User space has worked into each row what rules on directories above say.
 * Rows of one *profile* (workloads.h) are looked up among themselves only; backends that know none have 0.
 */
#ifndef GARRISON_PROGRAM_ROW_H
#define GARRISON_PROGRAM_ROW_H

#include "path_hash.h"

/* Kinds of rows. */
enum row_kind {
	ROW_OTHER = 0,	 /* programs that no rule names as a source */
	ROW_UNKNOWN = 1, /* programs whose path cannot be told */
	ROW_PROGRAM = 2, /* one program */
	ROW_DIRECT = 3,	 /* programs directly in a directory */
	ROW_BELOW = 4,	 /* programs further below a directory */
};

struct row_key {
	__u64 hash; /* of the program's path or of the directory; 0 for ROW_OTHER and ROW_UNKNOWN */
	__u32 kind;
	__u32 profile;
};
_Static_assert(sizeof(struct row_key) == 16, "struct row_key");

#define ROW_NEEDS_PATH 1      /* on ROW_OTHER: some rule has a source */
#define ROW_HAS_DIRECTORIES 2 /* on ROW_OTHER: some source is a directory */

static __always_inline void *find_row(void *rows, __u64 hash, __u32 kind, __u32 profile)
{
	struct row_key key = {.hash = hash, .kind = kind, .profile = profile};

	return bpf_map_lookup_elem(rows, &key);
}

/* What a task runs. */
struct program {
	struct file *exe;
	__u64 hash; /* of its path */
	__u32 resolved;
	__u32 pad;
};

static __always_inline void find_program(struct program *program, struct task_struct *task)
{
	program->exe = BPF_CORE_READ(task, mm, exe_file);
	program->hash = 0;
	program->resolved = program->exe && hash_path(&program->exe->f_path, &program->hash);
}

/* A second walk up, which looks for the deepest directory that has a row. */
struct directory_walk {
	struct walk at;
	void *rows;
	__u64 hash; /* of what is left of the path */
	__u32 kind;
	__u32 pad;
	struct row_key found; /* ROW_OTHER as long as there is none */
};

static long directory_step(__u32 index, void *context)
{
	struct directory_walk *walk = context;
	__u64 component;

	if (!hash_step(&walk->at, &component))
		return 1;
	if (!component)
		return 0;
	walk->hash = (walk->hash - component) * hash_inverse;
	if (find_row(walk->rows, walk->hash, walk->kind, walk->found.profile)) {
		walk->found.hash = walk->hash;
		walk->found.kind = walk->kind;
		return 1;
	}
	walk->kind = ROW_BELOW;
	return 0;
}

/* A program's row: its own, else of its deepest directory, else that of programs which no rule names. ``flags``: of ROW_OTHER. */
static __always_inline void *program_row(void *rows, struct program *program, __u32 flags, __u32 profile)
{
	struct directory_walk walk = {.rows = rows, .kind = ROW_DIRECT, .hash = program->hash, .found.profile = profile};
	void *row;

	if (!program->resolved)
		return find_row(rows, 0, ROW_UNKNOWN, profile);
	row = find_row(rows, walk.hash, ROW_PROGRAM, profile);
	if (row)
		return row;
	if (flags & ROW_HAS_DIRECTORIES) {
		walk_start(&walk.at, &program->exe->f_path);
		FORGET(walk.at);
		FORGET(walk.hash);
		FORGET(walk.kind);
		FORGET(walk.found);
		bpf_loop(WALK_STEPS, directory_step, &walk, 0);
		/* Something is left over: a directory was renamed between the two walks. */
		if (!walk.found.kind && (walk.hash || walk.at.state != WALK_ROOT)) {
			program->resolved = 0;
			return find_row(rows, 0, ROW_UNKNOWN, profile);
		}
	}
	return bpf_map_lookup_elem(rows, &walk.found);
}

#endif

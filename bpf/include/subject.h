/* SPDX-License-Identifier: GPL-2.0-only */
/*
 * Who acts: the task's program, by the path from which it was started, and what it was before.
 *
 * What tables say of a program is kept with its file. A task has an entry of its own in task storage only when there is more to know:
 * rules name its program, or one that it comes from; rules are for workloads; it has loaded a program. Most tasks have none, and are
 * started and ended without the cost of one.
 */
#ifndef GARRISON_SUBJECT_H
#define GARRISON_SUBJECT_H

#include "places.h"
#include "workloads.h"

/* A program that acted, in terms that outlive its file. */
struct past {
	__u64 hash; /* of its path; 0 for none */
	__u32 generation;
	__u32 class;
};

/* A start that was let go because it depends on its arguments, which can be read only when it cannot be refused any more. */
struct deferred {
	__u64 bprm;	/* 0: none */
	__u64 unlisted; /* outcomes, packed */
	__u64 listed;
	__u64 dentry;
	__u64 mnt;
	__u32 generation;
	__u32 set;
	__u32 copy;
	__u32 condition;
	__u32 listing; /* profile, as in arg_key.len, when it has a list of its own */
	__u32 pad;
};

#define ARG_BYTES 256 /* with the NUL; longer arguments are listed nowhere */

struct subject {
	struct place at; /* of the program */
	__u64 hash;	 /* of its path */
	__u32 generation;
	__u32 class;
	__u32 alias;	     /* class by home or inode, when it has none by path */
	struct past caller;  /* what started the present program */
	struct past pending; /* what is starting one */
	struct past loaded;  /* what a program without interpreter mapped as code first: ld.so PROGRAM */
	struct membership member;
	__u32 has_loaded;
	struct deferred deferred;
	char arg[ARG_BYTES]; /* scratch of the task's own */
};

/* Task -> its program. Written by the task itself, before it runs by its parent; goes with the task. */
struct {
	__uint(type, BPF_MAP_TYPE_TASK_STORAGE);
	__uint(map_flags, BPF_F_NO_PREALLOC);
	__type(key, int);
	__type(value, struct subject);
} subjects SEC(".maps");

/* Class of the current task's program by its inode. A function of its own, so that the key is not on the stack of its callers. */
__noinline __u32 class_of_inode(__u32 copy)
{
	struct mm_struct *mm = bpf_get_current_task_btf()->mm;
	struct file *exe = mm ? mm->exe_file : NULL;
	const struct inode_sets *named = exe ? named_inode(exe->f_inode, copy) : NULL;

	return named ? named->class : ANY_CLASS;
}

static __always_inline int needs_entry(const struct lookup *lookup)
{
	const struct head *head = head_of(lookup->copy); /* asked again: the stack is full */

	return lookup->set | lookup->home || (head && head->has_profiles);
}

/*
 * What is known of the program that ``task``, the current one, runs. Its class, further class and path's hash go to ``lookup``, which is
 * used for it; copy must be set. Returns the task's entry; NULL if it has none and needs none, for kernel threads, or without memory.
 */
static __always_inline struct subject *subject_of(struct task_struct *task, __u32 generation, struct lookup *lookup)
{
	struct mm_struct *mm = task->mm;
	struct file *exe = mm ? mm->exe_file : NULL;
	struct subject *kept;
	__u64 stamp;

	lookup->set = lookup->home = ANY_CLASS;
	if (!exe)
		return NULL;
	stamp = stamp_of(exe->f_path.dentry, exe->f_path.mnt, generation);
	kept = bpf_task_storage_get(&subjects, task, 0, 0);
	if (kept && is_place(&kept->at, (__u64)exe->f_path.dentry, (__u64)exe->f_path.mnt, stamp)) {
		lookup->set = kept->class;
		lookup->home = kept->alias;
		lookup->sum = kept->hash;
		return kept;
	}
	lookup->dentry = (__u64)exe->f_path.dentry;
	lookup->mnt = (__u64)exe->f_path.mnt;
	lookup->space = SPACE_SOURCE;
	if (!recall(located_of(exe->f_inode), lookup, stamp, NULL)) {
		path_sets(lookup);
		if (lookup->set != ANY_CLASS) {
			lookup->home = ANY_CLASS;
		} else if (!lookup->home) {
			lookup->home = class_of_inode(lookup->copy);
		}
		if (stamp == stamp_of(exe->f_path.dentry, exe->f_path.mnt, generation))
			remember(located_of(exe->f_inode), lookup, stamp, NO_SET); /* asked again: the stack is full */
		else
			stamp = 0;
	}
	if (!kept && needs_entry(lookup))
		kept = bpf_task_storage_get(&subjects, task, 0, BPF_LOCAL_STORAGE_GET_F_CREATE);
	if (!kept)
		return NULL;
	kept->at.stamp = 0; /* only the task itself gets here; an interrupted write must not look whole */
	kept->class = lookup->set;
	kept->alias = lookup->home;
	kept->hash = lookup->sum;
	kept->generation = generation;
	kept->at.dentry = lookup->dentry;
	kept->at.mnt = lookup->mnt;
	kept->at.stamp = stamp;
	return kept;
}

/* Class of a program of the past. In a later generation only by its own path: its directories are not known any more. */
static __always_inline __u32 past_class(const struct past *past, __u32 copy, __u32 generation)
{
	const struct node *node;
	void *table;

	__u64 hash = past->hash;

	if (past->generation == generation || !hash)
		return past->class;
	table = bpf_map_lookup_elem(&nodes, &copy);
	node = table ? bpf_map_lookup_elem(table, &hash) : NULL;
	return node ? node->source.exact : ANY_CLASS;
}

#endif

/* SPDX-License-Identifier: GPL-2.0-only */
/* Decisions as events. Ring full: the verdict holds, the event is counted as lost. */
#ifndef GARRISON_TELLING_H
#define GARRISON_TELLING_H

#include "actor.h"
#include "event_rate.h"
#include "places.h"

enum operation {
	OP_EXEC,
	OP_OPEN,
	OP_MAP,
	OP_UNLINK,
	OP_RENAME,
	OP_LINK,
	OP_CREATE,
	OP_ATTRIBUTES,
	OP_TRUNCATE,
	OP_MAP_SHARED,
	OP_RECEIVE,
	OP_EXEC_KILLED, /* an exec that was ended before its first instruction */
	OP_MAP_ANONYMOUS,
	OP_FOLLOW,
	OP_TRACE,	/* a process is taken over */
};

#define EVENT_NAMES 1024

struct decision_event {
	struct actor actor;
	__u32 generation;
	__u32 operation;
	struct outcome outcome;
	__u32 condition;
	__s32 exe_used;
	__s32 path_used;
	__u32 pad;
	__u64 ino;
	__u64 suppressed; /* events of the rule so far that were only counted: event_rate.h */
	__u32 dev;
	__u32 pad2;
	char exe[EVENT_NAMES + NAME_MAX_BYTES]; /* names, the last component first; see path_walk.h */
	char path[EVENT_NAMES + NAME_MAX_BYTES];
};

/* Decisions to be told. Full: counted by rule in ``lost``. */
struct {
	__uint(type, BPF_MAP_TYPE_RINGBUF);
	__uint(max_entries, 4 << 20); /* about 1,500 events */
} events SEC(".maps");

/* Lost events by generation and rule. Written here, read and deleted by user space. Full: COUNT_UNNAMED. */
struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__uint(max_entries, 65536);
	__uint(map_flags, BPF_F_NO_PREALLOC);
	__type(key, struct rule_key);
	__type(value, __u64);
} lost SEC(".maps");

DEFINE_WALK_NAMES(event_names, EVENT_NAMES)

static __always_inline void count_lost(__u32 generation, __u32 rule, __u32 events)
{
	struct rule_key key = {.generation = generation, .rule = rule};
	__u64 nothing = 0, *figure;

	count(COUNT_LOST);
	bpf_map_update_elem(&lost, &key, &nothing, BPF_NOEXIST);
	figure = bpf_map_lookup_elem(&lost, &key);
	if (figure)
		__sync_fetch_and_add(figure, events);
	else
		count(COUNT_UNNAMED);
}

/* Names of what an operation is on, for its event. What no name leads to is told by what it was called when it was made. */
static __always_inline int object_names(char *out, struct path *path)
{
	int used = event_names(out, path), more;

	if (used != -1 || !is_nameless((__u64)path->mnt))
		return used;
	more = bpf_probe_read_kernel_str(out, NAME_MAX_BYTES, BPF_CORE_READ(path, dentry, d_name.name));
	return more > 0 ? -1 - more : used;
}

/* What is told of a decision. */
struct telling {
	struct outcome outcome;
	__u64 dentry;
	__u64 mnt;
	__u64 suppressed; /* filled by may_tell() */
	__u32 generation;
	__u32 operation;
	__u32 condition;
	__u32 pad;
};

/* Counts a decision; returns whether there is a token for its event. Not part of tell(), whose stack is full. */
static __always_inline int may_tell(struct telling *told)
{
	count(told->outcome.verdict == VERDICT_BLOCK ? COUNT_BLOCKS : COUNT_AUDITS);
	told->suppressed = take_token(told->generation, told->outcome.rule, told->outcome.verdict, 0);
	if (told->suppressed != OVER_RATE)
		return 1;
	count(COUNT_SUPPRESSED);
	return 0;
}

/* Verified for itself. */
__noinline int tell(const struct telling *told)
{
	struct task_struct *task = (void *)bpf_get_current_task();
	struct mm_struct *mm = BPF_CORE_READ(task, mm);
	struct file *exe = mm ? BPF_CORE_READ(mm, exe_file) : NULL;
	__u32 zero = 0;
	const struct agent *self = bpf_map_lookup_elem(&agent, &zero);
	struct decision_event *event;
	struct inode *inode;
	struct path path = {};

	if (!told)
		return 0;
	path.dentry = (void *)told->dentry;
	path.mnt = (void *)told->mnt;
	event = self ? bpf_ringbuf_reserve(&events, sizeof(*event), 0) : NULL;
	if (!event) {
		count_lost(told->generation, told->outcome.rule, 1);
		return 0;
	}
	fill_actor(&event->actor, self, task);
	event->generation = told->generation;
	event->operation = told->operation;
	event->outcome = told->outcome;
	event->condition = told->condition;
	event->pad = event->pad2 = 0;
	inode = BPF_CORE_READ(path.dentry, d_inode);
	event->ino = BPF_CORE_READ(inode, i_ino);
	event->dev = BPF_CORE_READ(inode, i_sb, s_dev);
	event->suppressed = told->suppressed;
	event->exe_used = exe ? event_names(event->exe, &exe->f_path) : -1;
	event->path_used = object_names(event->path, &path);
	bpf_ringbuf_submit(event, 0);
	return 0;
}

#endif

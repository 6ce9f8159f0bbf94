/* SPDX-License-Identifier: GPL-2.0-only */
/*
 * From an operation on a path to a verdict and an event: what the exec and file programs share.
 *
 * Who acts is told by the path of its program, kept in task storage until the next exec, rename or generation. What is acted on
 * is told by its path, kept in inode storage, and by (device, inode) for files that a rule names and that existed when it was
 * compiled: the stricter of the two counts, so hard links, bind mounts and renames lead nowhere.
 *
 * A cache entry holds for one dentry on one mount in one generation and epoch. The epoch rises when a directory is renamed or a
 * mount changes (watch.bpf.c); an inode's own entry is dropped when it is linked or renamed.
 * No memory for a cache entry: the path is walked again next time. Ring full: the verdict holds, the event is counted as lost.
 */
#ifndef GARRISON_ENFORCE_H
#define GARRISON_ENFORCE_H

#include "actor.h"
#include "rule_tables.h"

#include <bpf/bpf_tracing.h>

#define EPERM 1
#define SB_NOUSER (1UL << 31) /* include/linux/fs.h */

/* ---- Maps ------------------------------------------------------------------------------------------------------------- */

struct subject {
	__u64 dentry; /* of the program */
	__u64 mnt;
	__u32 generation;
	__u32 epoch;
	__u32 class;
	__u32 pad;
};

/* Task -> class of its program. Written here; goes with the task. */
struct {
	__uint(type, BPF_MAP_TYPE_TASK_STORAGE);
	__uint(map_flags, BPF_F_NO_PREALLOC);
	__type(key, int);
	__type(value, struct subject);
} subjects SEC(".maps");

struct place {
	__u64 dentry;
	__u64 mnt;
	__u32 generation;
	__u32 epoch;
};

/* Several CPUs open one file at once, so it is read and written whole, under its lock. */
struct located {
	struct bpf_spin_lock lock;
	__u32 known; /* bit per entity */
	struct place at;
	__u32 set[ENTITIES];
};

/* Inode -> sets of the path by which it was last reached. Written here; goes with the inode. */
struct {
	__uint(type, BPF_MAP_TYPE_INODE_STORAGE);
	__uint(map_flags, BPF_F_NO_PREALLOC);
	__type(key, int);
	__type(value, struct located);
} locations SEC(".maps");

struct inode_key {
	__u64 ino;
	__u32 dev; /* as in the kernel: major << 20 | minor */
	__u32 pad;
};

struct inode_sets {
	__u32 set[ENTITIES];
};

/* Files that rules name -> sets of the paths that name them. */
TWO_COPIES(inodes, BPF_MAP_TYPE_HASH, 0, sizeof(struct inode_key), sizeof(struct inode_sets));

/* Key 0: rises when paths may have changed under existing dentries. Written by watch.bpf.c. */
struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(max_entries, 1);
	__type(key, __u32);
	__type(value, __u32);
} epoch SEC(".maps");

/* Key 0: key of the path hashes, for an agent that takes over. Written by user space; read by root alone. */
struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(max_entries, 1);
	__type(key, __u32);
	__type(value, __u8[24]);
} secret SEC(".maps");

enum operation { OP_EXEC, OP_OPEN, OP_MAP_EXEC, OP_UNLINK, OP_RENAME, OP_LINK, OP_CREATE, OP_ATTRIBUTES, OP_TRUNCATE };

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

struct lost_key {
	__u32 generation;
	__u32 rule;
};

/* Lost events by generation and rule. Written here, read and deleted by user space. Full: COUNT_UNNAMED. */
struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__uint(max_entries, 65536);
	__uint(map_flags, BPF_F_NO_PREALLOC);
	__type(key, struct lost_key);
	__type(value, __u64);
} lost SEC(".maps");

enum counter { COUNT_DECISIONS, COUNT_BLOCKS, COUNT_AUDITS, COUNT_LOST, COUNT_UNNAMED, COUNT_UNRESOLVED, COUNT_TABLE, COUNT_WALKS, COUNTERS };

/* Figures by enum counter. Written here, read by user space. */
struct {
	__uint(type, BPF_MAP_TYPE_PERCPU_ARRAY);
	__uint(max_entries, COUNTERS);
	__type(key, __u32);
	__type(value, __u64);
} counters SEC(".maps");

DEFINE_WALK_NAMES(event_names, EVENT_NAMES)

/* ---- Helpers ---------------------------------------------------------------------------------------------------------- */

static __always_inline void count(__u32 which)
{
	__u64 *figure = bpf_map_lookup_elem(&counters, &which);

	if (figure)
		__sync_fetch_and_add(figure, 1);
}

static __always_inline __u32 present_epoch(void)
{
	__u32 zero = 0, *value = bpf_map_lookup_elem(&epoch, &zero);

	return value ? *value : 0;
}

/* What the tree says of a path, and the hash of its last component; negative when the path cannot be told. Verified for itself. */
__noinline int tree_set(__u64 dentry, __u64 mnt, __u32 copy, __u32 space, __u64 *last)
{
	struct path path = {.dentry = (void *)dentry, .mnt = (void *)mnt};
	struct climb climb = {.copy = copy, .space = space};

	if (!last || !climb_path(&climb, &path))
		return -1;
	*last = climb.last;
	return !climb.taken ? climb.sets.exact : climb.taken == 1 ? climb.sets.child : climb.sets.deep;
}

/*
 * The set of rules that name a path, or of all block rules when it cannot be told; for SPACE_SOURCE the class of a program.
 * Verified for itself, for any argument.
 */
__noinline __u32 walk_to_set(__u64 dentry, __u64 mnt, __u32 copy, __u32 space)
{
	const struct head *head = head_of(copy);
	__u32 set, glob = NO_SET, name = NO_SET, *found;
	__u64 last = 0;
	void *table;
	int tree;

	if (!head)
		return NO_SET;
	count(COUNT_WALKS);
	tree = tree_set(dentry, mnt, copy, space, &last);
	if (tree < 0) {
		count(COUNT_UNRESOLVED);
		return space == SPACE_SOURCE ? UNKNOWN_CLASS : head->unresolved[space & 1];
	}
	set = tree;
	if (space == SPACE_SOURCE)
		return set;
	if (head->has_names && space == SPACE_PROCESS) {
		table = bpf_map_lookup_elem(&names, &copy);
		found = table ? bpf_map_lookup_elem(table, &last) : NULL;
		name = found ? *found : NO_SET;
	}
	if (head->has_globs) {
		int accept = glob_accept(dentry, mnt, copy);
		const struct glob_sets *sets;

		if (accept < 0) {
			count(COUNT_UNRESOLVED);
			return head->unresolved[space & 1];
		}
		table = bpf_map_lookup_elem(&globs, &copy);
		sets = table ? bpf_map_lookup_elem(table, &accept) : NULL;
		glob = sets ? sets->set[space & 1] : NO_SET;
	}
	if (glob || name) {
		struct union_key key = {.tree = set, .glob = glob, .name = name};

		table = bpf_map_lookup_elem(&unions, &copy);
		found = table ? bpf_map_lookup_elem(table, &key) : NULL;
		if (!found) {
			count(COUNT_TABLE);
			return head->unresolved[space & 1];
		}
		set = *found;
	}
	return set;
}

/* Class of the program that runs in ``task``. Kernel threads have none. */
static __always_inline __u32 class_of(struct task_struct *task, __u32 copy, __u32 generation)
{
	struct mm_struct *mm = BPF_CORE_READ(task, mm);
	struct file *exe = mm ? BPF_CORE_READ(mm, exe_file) : NULL;
	__u32 now = present_epoch(), class;
	struct subject *kept;
	__u64 dentry, mnt;

	if (!exe)
		return ANY_CLASS;
	dentry = (__u64)BPF_CORE_READ(exe, f_path.dentry);
	mnt = (__u64)BPF_CORE_READ(exe, f_path.mnt);
	kept = bpf_task_storage_get(&subjects, task, 0, BPF_LOCAL_STORAGE_GET_F_CREATE);
	if (kept && kept->generation == generation && kept->epoch == now && kept->dentry == dentry && kept->mnt == mnt)
		return kept->class;
	class = walk_to_set(dentry, mnt, copy, SPACE_SOURCE);
	if (kept) {
		kept->generation = 0; /* another thread of a task never runs this; an interrupted write must not look whole */
		kept->class = class;
		kept->dentry = dentry;
		kept->mnt = mnt;
		kept->epoch = now;
		kept->generation = generation;
	}
	return class;
}

static __always_inline struct outcome outcome_of(__u32 copy, __u32 set, __u32 class, __u32 condition)
{
	struct outcome none = {};
	struct record_key key = {.set = set, .subject = class};
	void *table = bpf_map_lookup_elem(&rows, &copy), *values = bpf_map_lookup_elem(&records, &copy);
	const struct record *record;
	__u32 *row;

	if (!table || !values)
		return none;
	row = bpf_map_lookup_elem(table, &key);
	if (!row && class != ANY_CLASS) {
		key.subject = ANY_CLASS;
		row = bpf_map_lookup_elem(table, &key);
	}
	record = row ? bpf_map_lookup_elem(values, row) : NULL;
	return record ? record->by[condition & (CONDITIONS - 1)] : none;
}

/* What is told of a decision. */
struct telling {
	struct outcome outcome;
	__u64 dentry;
	__u64 mnt;
	__u64 ino;
	__u32 dev;
	__u32 generation;
	__u32 operation;
	__u32 condition;
};

/* Verified for itself. */
__noinline int tell(const struct telling *told)
{
	struct task_struct *task = (void *)bpf_get_current_task();
	struct mm_struct *mm = BPF_CORE_READ(task, mm);
	struct file *exe = mm ? BPF_CORE_READ(mm, exe_file) : NULL;
	__u32 zero = 0;
	const struct agent *self = bpf_map_lookup_elem(&agent, &zero);
	struct decision_event *event;
	struct path path = {};

	if (!told)
		return 0;
	path.dentry = (void *)told->dentry;
	path.mnt = (void *)told->mnt;
	count(told->outcome.verdict == VERDICT_BLOCK ? COUNT_BLOCKS : COUNT_AUDITS);
	event = self ? bpf_ringbuf_reserve(&events, sizeof(*event), 0) : NULL;
	if (!event) {
		struct lost_key key = {.generation = told->generation, .rule = told->outcome.rule};
		__u64 nothing = 0, *figure;

		count(COUNT_LOST);
		bpf_map_update_elem(&lost, &key, &nothing, BPF_NOEXIST);
		figure = bpf_map_lookup_elem(&lost, &key);
		if (figure)
			__sync_fetch_and_add(figure, 1);
		else
			count(COUNT_UNNAMED);
		return 0;
	}
	fill_actor(&event->actor, self, task);
	event->generation = told->generation;
	event->operation = told->operation;
	event->outcome = told->outcome;
	event->condition = told->condition;
	event->pad = event->pad2 = 0;
	event->ino = told->ino;
	event->dev = told->dev;
	event->exe_used = exe ? event_names(event->exe, &exe->f_path) : -1;
	event->path_used = event_names(event->path, &path);
	bpf_ringbuf_submit(event, 0);
	return 0;
}

/*
 * Files that no path can ever lead to: pipes, sockets, pidfds, memfds. No rule names them, and unlike a path that cannot be told
 * they are not refused for that: processes are watched with pidfds, and container runtimes start from a memfd.
 */
static __always_inline int nameless(struct inode *inode)
{
	return (BPF_CORE_READ(inode, i_sb, s_flags) & SB_NOUSER) != 0;
}

static __always_inline int same_place(const struct place *a, const struct place *b)
{
	return a->dentry == b->dentry && a->mnt == b->mnt && a->generation == b->generation && a->epoch == b->epoch;
}

/* Whether the set for this place is known. */
static __always_inline int recall(struct located *kept, const struct place *at, __u32 entity, __u32 *set)
{
	int known;

	if (!kept)
		return 0;
	bpf_spin_lock(&kept->lock);
	known = same_place(&kept->at, at) && kept->known & (1 << entity);
	*set = entity == ENTITY_PROCESS ? kept->set[ENTITY_PROCESS] : kept->set[ENTITY_FILE];
	bpf_spin_unlock(&kept->lock);
	return known;
}

static __always_inline void remember(struct located *kept, const struct place *at, __u32 entity, __u32 set)
{
	if (!kept)
		return;
	bpf_spin_lock(&kept->lock);
	kept->known = (same_place(&kept->at, at) ? kept->known : 0) | 1 << entity;
	kept->at = *at;
	if (entity == ENTITY_PROCESS)
		kept->set[ENTITY_PROCESS] = set;
	else
		kept->set[ENTITY_FILE] = set;
	bpf_spin_unlock(&kept->lock);
}

/* The one decision helper. Returns 0 or -EPERM. */
static __always_inline int enforce(__u32 entity, __u32 operation, struct path *path, struct inode *inode, __u32 condition)
{
	struct task_struct *task = bpf_get_current_task_btf();
	/* Read, not followed: to functions that are verified for themselves only plain numbers can be handed. */
	__u64 dentry = (__u64)BPF_CORE_READ(path, dentry), mnt = (__u64)BPF_CORE_READ(path, mnt);
	__u32 copy = active_copy(), now = present_epoch(), class, set, generation;
	struct head *head = head_of(copy);
	struct outcome outcome, by_inode;
	struct inode_key key = {};
	struct telling told = {};
	const struct inode_sets *named;
	struct place at = {.dentry = dentry, .mnt = mnt, .epoch = now};
	struct located *kept;
	void *table;

	if (!head || !head->generation || nameless(inode))
		return 0;
	count(COUNT_DECISIONS);
	generation = at.generation = head->generation;
	if (BPF_CORE_READ(inode, i_uid.val) == BPF_CORE_READ(task, cred, fsuid.val))
		condition |= CONDITION_OWNER;
	if (BPF_CORE_READ(task, signal, tty))
		condition |= CONDITION_TTY;
	class = class_of(task, copy, generation);
	kept = bpf_inode_storage_get(&locations, inode, 0, BPF_LOCAL_STORAGE_GET_F_CREATE);
	if (!recall(kept, &at, entity, &set)) {
		set = walk_to_set(dentry, mnt, copy, entity);
		remember(kept, &at, entity, set);
	}
	outcome = outcome_of(copy, set, class, condition);
	if (outcome.verdict != VERDICT_BLOCK) {
		key.ino = BPF_CORE_READ(inode, i_ino);
		key.dev = BPF_CORE_READ(inode, i_sb, s_dev);
		table = bpf_map_lookup_elem(&inodes, &copy);
		named = table ? bpf_map_lookup_elem(table, &key) : NULL;
		if (named && named->set[entity & 1] != set) {
			by_inode = outcome_of(copy, named->set[entity & 1], class, condition);
			if (by_inode.verdict > outcome.verdict)
				outcome = by_inode;
		}
	}
	if (outcome.verdict == VERDICT_NONE)
		outcome = outcome_of(copy, POSTURE_OF(entity), class, 0);
	if (outcome.verdict < VERDICT_AUDIT)
		return 0;
	told.outcome = outcome;
	told.dentry = dentry;
	told.mnt = mnt;
	told.ino = BPF_CORE_READ(inode, i_ino);
	told.dev = BPF_CORE_READ(inode, i_sb, s_dev);
	told.generation = generation;
	told.operation = operation;
	told.condition = condition;
	tell(&told);
	return outcome.verdict == VERDICT_BLOCK ? -EPERM : 0;
}

#endif

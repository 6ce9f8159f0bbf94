/* SPDX-License-Identifier: GPL-2.0-only */
/*
 * From an operation on a path to a verdict and an event: what all programs about processes and files share.
 *
 * Who acts is told by the path of its program, kept in task storage until the next exec, rename or generation, and with the program's
 * file, so that its next start and its children find it there. What is acted on is
 * told by its path, by its home (rule_tables.h), both kept in inode storage, and by (device, inode) for files that a rule names and
 * that existed when it was compiled. The strictest counts, so hard links, bind mounts and renames lead nowhere; only the path
 * can grant.
 *
 * A cache entry holds for one dentry of one parent, name and mount in one generation, while no directory was renamed (``epoch``,
 * watch.bpf.c) and no mount of its namespace changed (the namespace's own counter).
 * No memory for a cache entry: the path is walked again next time. Ring full: the verdict holds, the event is counted as lost.
 */
#ifndef GARRISON_ENFORCE_H
#define GARRISON_ENFORCE_H

#include "actor.h"
#include "event_rate.h"
#include "rule_tables.h"
#include "workloads.h"

#include <bpf/bpf_tracing.h>

#define EPERM 1
#define MAX_ERRNO 4095
#define S_IFMT 0170000
#define S_IFDIR 0040000

/* ---- Maps ------------------------------------------------------------------------------------------------------------- */

/* How a path was reached. All zero: nowhere. */
struct place {
	__u64 dentry;
	__u64 mnt;
	__u64 stamp; /* keyed digest of all that changes when something moves, or rules change */
};

/* A program that acted, in terms that outlive its file. */
struct past {
	__u64 hash; /* of its path; 0 for none */
	__u32 generation;
	__u32 class;
};

enum image {
	IMAGE_UNKNOWN, /* started before the programs were loaded, or forked */
	IMAGE_FRESH,   /* started, nothing mapped by an interpreter of the kernel's choice: static, or a dynamic linker */
	IMAGE_DYNAMIC, /* started with a dynamic linker */
	IMAGE_LOADED,  /* FRESH, and then mapped ``loaded`` as code: ld.so PROGRAM */
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
	struct past loaded;
	struct membership member;
	__u32 image;
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

/* Several CPUs open one file at once, so it is read and written whole, under its lock. */
struct located {
	struct bpf_spin_lock lock;
	__u32 known; /* bit per space */
	struct place at;
	__u64 sum; /* of the path, for SPACE_SOURCE */
	__u32 set[SPACES];
	__u32 home[SPACES];
	__u32 named[ENTITIES];
};

/* Inode -> sets, and class as a program, of the path by which it was last reached. Written here; goes with the inode. */
struct {
	__uint(type, BPF_MAP_TYPE_INODE_STORAGE);
	__uint(map_flags, BPF_F_NO_PREALLOC);
	__type(key, int);
	__type(value, struct located);
} locations SEC(".maps");

struct inode_sets {
	__u32 set[ENTITIES];
	__u32 class;
};

/* Files that rules name -> sets of the paths that name them, class of the program. */
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

enum counter { COUNT_DECISIONS, COUNT_BLOCKS, COUNT_AUDITS, COUNT_LOST, COUNT_UNNAMED, COUNT_UNRESOLVED, COUNT_TABLE, COUNT_WALKS, COUNT_SUPPRESSED, COUNTERS };

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

static __always_inline __u32 present_epoch(void)
{
	__u32 zero = 0, *value = bpf_map_lookup_elem(&epoch, &zero);

	return value ? *value : 0;
}

static __always_inline int is_directory(struct dentry *dentry)
{
	struct inode *inode = BPF_CORE_READ(dentry, d_inode);

	return inode && (BPF_CORE_READ(inode, i_mode) & S_IFMT) == S_IFDIR;
}

/* Pipes, sockets, memfd: on a mount of the kernel's own, which no name leads to. */
static __always_inline int is_nameless(__u64 mnt)
{
	unsigned long ns = mnt ? (unsigned long)BPF_CORE_READ(mount_of((void *)mnt), mnt_ns) : 0;

	return ns >= (unsigned long)-MAX_ERRNO;
}

/* Functions of their own, verified for themselves, so that their keys are not on the stack when paths are walked. */
__noinline __u32 union_of(__u32 copy, __u32 tree, __u32 glob, __u32 name, __u32 entity)
{
	struct union_key key = {.tree = tree, .glob = glob, .name = name};
	void *table = bpf_map_lookup_elem(&unions, &copy);
	const __u32 *found = table ? bpf_map_lookup_elem(table, &key) : NULL;
	const struct head *head;

	if (found)
		return *found;
	count(COUNT_TABLE);
	head = head_of(copy);
	return head ? head->unresolved[entity & 1] : NO_SET;
}

__noinline __u32 name_set(__u32 copy, __u64 last)
{
	void *table = bpf_map_lookup_elem(&names, &copy);
	const __u32 *found = table ? bpf_map_lookup_elem(table, &last) : NULL;

	return found ? *found : NO_SET;
}

__noinline __u32 glob_set(__u32 copy, __u32 accept, __u32 entity)
{
	void *table = bpf_map_lookup_elem(&globs, &copy);
	const struct glob_sets *sets = table ? bpf_map_lookup_elem(table, &accept) : NULL;

	return sets ? sets->set[entity & 1] : NO_SET;
}

/*
 * Fills ``lookup`` with the sets of rules that name a path, or with all block rules when it cannot be told; for SPACE_SOURCE with the
 * classes of a program. Verified for itself, for any argument.
 */
__noinline int path_sets(struct lookup *lookup)
{
	__u32 glob = NO_SET, name = NO_SET, copy, space;
	const struct head *head;
	int accept = 0, known;

	if (!lookup)
		return 0;
	copy = lookup->copy;
	space = lookup->space;
	head = head_of(copy);
	if (!head)
		return 0;
	count(COUNT_WALKS);
	/* Again before it is given up: a directory on the way may just have been renamed. */
	known = tree_sets(lookup) >= 0 || tree_sets(lookup) >= 0;
	if (known && head->has_globs && space != SPACE_SOURCE && lookup->mnt)
		accept = glob_accept(lookup->dentry, lookup->mnt, copy);
	if (!known || accept < 0) {
		lookup->set = lookup->home = space == SPACE_SOURCE ? UNKNOWN_CLASS : head->unresolved[space & 1];
		lookup->sum = lookup->below = 0;
		/* No name leads there, so no rule about a name can mean it. What an allow-list of programs does with it, its posture
		 * says. Container runtimes start from a memfd: refusing all of them for any block rule would stop those. */
		if (space != SPACE_SOURCE && is_nameless(lookup->mnt))
			lookup->set = lookup->home = NO_SET;
		else
			count(COUNT_UNRESOLVED);
		return 0;
	}
	if (head->has_names && space == SPACE_PROCESS)
		name = name_set(copy, lookup->last);
	if (accept)
		glob = glob_set(copy, accept, space);
	if (glob || name) {
		lookup->home = union_of(copy, lookup->home, glob, name, space);
		lookup->set = union_of(copy, lookup->set, glob, name, space);
	}
	return 0;
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

static __always_inline __u64 mix(__u64 digest, __u64 value)
{
	digest = (digest ^ value) * hash_factor;
	return digest ^ digest >> 32;
}

/*
 * Changes when the dentry is another's or moves, a directory is renamed, a mount of its namespace changes, or rules change. Keyed
 * as paths are, so that nobody can make two alike.
 */
static __always_inline __u64 stamp_of(struct dentry *dentry, struct vfsmount *mnt, __u32 generation)
{
	__u64 digest = mix(hash_key[0], (__u64)generation << 32 | present_epoch());

	/* Of two pointers the verifier lets us take the difference, and only that, as a number. */
	digest = mix(digest, (__u64)dentry->d_parent - (__u64)dentry);
	digest = mix(digest, (__u64)dentry->d_name.len << 32 | dentry->d_name.hash);
	return mix(digest, BPF_CORE_READ(mount_of(mnt), mnt_ns, event)) ?: 1;
}

static __always_inline int is_place(const struct place *place, __u64 dentry, __u64 mnt, __u64 stamp)
{
	return place->stamp == stamp && place->dentry == dentry && place->mnt == mnt;
}

static __always_inline const struct inode_sets *named_inode(const struct inode *inode, __u32 copy)
{
	struct inode_key key = {.ino = inode->i_ino, .dev = inode->i_sb->s_dev};
	void *table = bpf_map_lookup_elem(&inodes, &copy);

	return table ? bpf_map_lookup_elem(table, &key) : NULL;
}

/* Class of the current task's program by its inode. A function of its own, so that the key is not on the stack of its callers. */
__noinline __u32 class_of_inode(__u32 copy)
{
	struct mm_struct *mm = bpf_get_current_task_btf()->mm;
	struct file *exe = mm ? mm->exe_file : NULL;
	const struct inode_sets *named = exe ? named_inode(exe->f_inode, copy) : NULL;

	return named ? named->class : ANY_CLASS;
}

static __always_inline struct located *located_of(struct inode *inode)
{
	return bpf_inode_storage_get(&locations, inode, 0, BPF_LOCAL_STORAGE_GET_F_CREATE);
}

/* Whether what tables say of this place is known; ``named`` may be NULL. */
static __always_inline int recall(struct located *kept, struct lookup *at, __u64 stamp, __u32 *named)
{
	int known;

	if (!kept)
		return 0;
	bpf_spin_lock(&kept->lock);
	known = is_place(&kept->at, at->dentry, at->mnt, stamp) && kept->known & (1 << at->space);
	if (at->space == SPACE_SOURCE) {
		at->sum = kept->sum;
		at->set = kept->set[SPACE_SOURCE];
		at->home = kept->home[SPACE_SOURCE];
	} else if (at->space == SPACE_PROCESS) {
		at->set = kept->set[SPACE_PROCESS];
		at->home = kept->home[SPACE_PROCESS];
		*named = kept->named[ENTITY_PROCESS];
	} else {
		at->set = kept->set[SPACE_FILE];
		at->home = kept->home[SPACE_FILE];
		*named = kept->named[ENTITY_FILE];
	}
	bpf_spin_unlock(&kept->lock);
	return known;
}

static __always_inline void remember(struct located *kept, const struct lookup *at, __u64 stamp, __u32 named)
{
	if (!kept)
		return;
	bpf_spin_lock(&kept->lock);
	kept->known = (is_place(&kept->at, at->dentry, at->mnt, stamp) ? kept->known : 0) | 1 << at->space;
	kept->at.dentry = at->dentry;
	kept->at.mnt = at->mnt;
	kept->at.stamp = stamp;
	if (at->space == SPACE_SOURCE) {
		kept->sum = at->sum;
		kept->set[SPACE_SOURCE] = at->set;
		kept->home[SPACE_SOURCE] = at->home;
	} else if (at->space == SPACE_PROCESS) {
		kept->set[SPACE_PROCESS] = at->set;
		kept->home[SPACE_PROCESS] = at->home;
		kept->named[ENTITY_PROCESS] = named;
	} else {
		kept->set[SPACE_FILE] = at->set;
		kept->home[SPACE_FILE] = at->home;
		kept->named[ENTITY_FILE] = named;
	}
	bpf_spin_unlock(&kept->lock);
}

/*
 * What is known of the program that ``task``, the current one, runs; NULL for kernel threads, or without memory. Its class goes to
 * ``lookup->set``, which is used for it; copy must be set. A new task, or a program that is started again, finds it at the file.
 */
static __always_inline struct subject *subject_of(struct task_struct *task, __u32 generation, struct lookup *lookup)
{
	struct mm_struct *mm = task->mm;
	struct file *exe = mm ? mm->exe_file : NULL;
	struct subject *kept;
	__u64 stamp;

	lookup->set = ANY_CLASS;
	if (!exe)
		return NULL;
	stamp = stamp_of(exe->f_path.dentry, exe->f_path.mnt, generation);
	kept = bpf_task_storage_get(&subjects, task, 0, BPF_LOCAL_STORAGE_GET_F_CREATE);
	if (kept && is_place(&kept->at, (__u64)exe->f_path.dentry, (__u64)exe->f_path.mnt, stamp)) {
		lookup->set = kept->class;
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

/*
 * A subject's own row, or the nearest that stands for it: any class in its profile, its class on the host, any class on the host. A
 * profile has rows for each class that the set has rows for, or for none.
 */
static __always_inline const __u32 *row_of(void *table, __u32 set, __u32 subject)
{
	struct record_key key = {.set = set, .subject = subject};
	const __u32 *row = bpf_map_lookup_elem(table, &key);

	if (!row && subject & CLASS_MASK) {
		key.subject = subject & ~CLASS_MASK;
		row = bpf_map_lookup_elem(table, &key);
	}
	if (!row && subject >> CLASS_BITS) {
		key.subject = subject & CLASS_MASK;
		row = bpf_map_lookup_elem(table, &key);
		if (!row && key.subject) {
			key.subject = ANY_CLASS;
			row = bpf_map_lookup_elem(table, &key);
		}
	}
	return row;
}

static __always_inline struct outcome outcome_of(__u32 copy, __u32 set, __u32 subject, __u32 condition)
{
	struct outcome none = {};
	void *table = bpf_map_lookup_elem(&rows, &copy), *values = bpf_map_lookup_elem(&records, &copy);
	const struct record *record;
	const __u32 *row;

	if (!table || !values)
		return none;
	row = row_of(table, set, subject);
	record = row ? bpf_map_lookup_elem(values, row) : NULL;
	return record ? record->by[condition & (CONDITIONS - 1)] : none;
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

/* ---- Decisions -------------------------------------------------------------------------------------------------------- */

#define REQUEST_RULES_ONLY 1 /* postures and allow-lists do not apply */
#define REQUEST_BELOW 2	     /* it is about all that is in a directory, too */
#define REQUEST_LISTS 4	     /* there are allow-lists */
#define REQUEST_INODES 8     /* there are files known by inode */
#define REQUEST_WORKLOADS 16 /* there are rules for workloads */
#define ALSO_SHIFT 16	     /* from this bit on: profile of a container that the actor has left; HOST_PROFILE for none */

/* One operation on one path. */
struct request {
	struct lookup at; /* space is the entity */
	__u32 operation;
	__u32 condition;
	__u32 flags;
	/* filled by identify() */
	__u32 generation;
	__u32 class; /* these three with the actor's profile: they are subjects */
	__u32 alias; /* further classes of the actor, which only refuse; ANY_CLASS for none */
	__u32 extra;
	__u32 named; /* set of the inode, as far as a rule names it */
};

/* An outcome as one number, for functions that are verified for themselves; the greater is the stricter. */
static __always_inline __u64 packed(struct outcome outcome)
{
	return (__u64)outcome.verdict << 40 | (__u64)outcome.by_posture << 32 | outcome.rule;
}

static __always_inline struct outcome unpacked(__u64 outcome)
{
	struct outcome found = {.verdict = outcome >> 40, .by_posture = outcome >> 32 & 1, .rule = outcome};

	return found;
}

static __always_inline int is_stricter(struct outcome outcome, __u64 than)
{
	return outcome.verdict >= VERDICT_AUDIT && outcome.verdict > than >> 40;
}

/* Whether rules name this class: by a row in its profile, or on the host when the profile has no rows for the set. */
static __always_inline int is_named(void *table, __u32 set, __u32 subject)
{
	struct record_key key = {.set = set, .subject = subject};

	if (!(subject & CLASS_MASK))
		return 0;
	if (bpf_map_lookup_elem(table, &key))
		return 1;
	key.subject = subject & CLASS_MASK;
	return subject >> CLASS_BITS && bpf_map_lookup_elem(table, &key);
}

/* What rules say of a class that they name; nothing when they name it not. */
static __always_inline struct outcome outcome_of_named(__u32 copy, __u32 set, __u32 subject, __u32 condition)
{
	struct outcome none = {};
	void *table = bpf_map_lookup_elem(&rows, &copy);

	return table && is_named(table, set, subject) ? outcome_of(copy, set, subject, condition) : none;
}

/* The outcome of a set for all that the actor is. Verified for itself. */
__noinline __u64 weigh_set(const struct request *request, __u32 set)
{
	struct outcome outcome;
	__u64 found;

	if (!request || !set)
		return 0;
	found = packed(outcome_of(request->at.copy, set, request->class, request->condition));
	outcome = outcome_of_named(request->at.copy, set, request->alias, request->condition);
	if (is_stricter(outcome, found))
		found = packed(outcome);
	outcome = outcome_of_named(request->at.copy, set, request->extra, request->condition);
	if (is_stricter(outcome, found))
		found = packed(outcome);
	return found;
}

/* The posture of a further class of the actor, where no rule speaks of it. */
static __always_inline __u64 weigh_posture(const struct request *request, __u32 class, __u64 found)
{
	struct outcome posture = outcome_of_named(request->at.copy, POSTURE_OF(request->at.space), class, 0);

	if (!is_stricter(posture, found) || outcome_of(request->at.copy, request->at.set, class, request->condition).verdict)
		return found;
	return packed(posture);
}

/* What allow-lists say, where rules have said ``found``. Verified for itself. */
__noinline __u64 weigh_lists(const struct request *request, __u64 found)
{
	if (!request)
		return found;
	if (!(found >> 40))
		found = packed(outcome_of(request->at.copy, POSTURE_OF(request->at.space), request->class, 0));
	found = weigh_posture(request, request->alias, found);
	return weigh_posture(request, request->extra, found);
}

/* Whether no rule and no posture can speak: mostly so, and told without a look-up. */
static __always_inline int is_free(const struct request *request)
{
	return !(request->at.set | request->at.home | request->named | (request->flags & (REQUEST_LISTS | REQUEST_BELOW)));
}

/* The strictest outcome of all that the path is. Verified for itself. */
__noinline __u64 weigh_once(const struct request *request)
{
	__u64 found, other;

	if (!request)
		return 0;
	found = weigh_set(request, request->at.set);
	if (request->at.home != request->at.set) {
		other = weigh_set(request, request->at.home);
		if (is_stricter(unpacked(other), found))
			found = other;
	}
	if (request->flags & REQUEST_BELOW && request->at.below) {
		other = weigh_set(request, request->at.below);
		if (is_stricter(unpacked(other), found))
			found = other;
	}
	if (request->named != request->at.set) {
		other = weigh_set(request, request->named);
		if (is_stricter(unpacked(other), found))
			found = other;
	}
	if (request->flags & REQUEST_LISTS && !(request->flags & REQUEST_RULES_ONLY) &&
	    !(request->at.space == SPACE_FILE && is_nameless(request->at.mnt)))
		found = weigh_lists(request, found);
	return found;
}

/* A further class of the actor as a subject; there is none of any class. */
static __always_inline __u32 further_in(__u32 class, __u32 profile)
{
	return class & CLASS_MASK ? subject_in(class, profile) : ANY_CLASS;
}

static __always_inline __u32 profile_of(const struct request *request)
{
	return request->class >> CLASS_BITS;
}

static __always_inline __u32 also_of(const struct request *request)
{
	return request->flags >> ALSO_SHIFT;
}

static __always_inline void act_in(struct request *request, __u32 profile)
{
	request->class = subject_in(request->class, profile);
	request->alias = further_in(request->alias, profile);
	request->extra = further_in(request->extra, profile);
}

/* What one workload allows, the posture of the one that the actor has left may still refuse. Verified for itself. */
__noinline __u64 weigh_also(struct request *request, __u64 found)
{
	__u32 profile;
	__u64 other;

	if (!request)
		return found;
	profile = profile_of(request);
	act_in(request, also_of(request));
	other = weigh_once(request);
	act_in(request, profile);
	return is_stricter(unpacked(other), found) ? other : found;
}

/* The strictest outcome in all workloads that the actor is of. */
static __always_inline __u64 weigh_request(struct request *request)
{
	__u64 found = weigh_once(request);

	return also_of(request) ? weigh_also(request, found) : found;
}

/* Verified for itself. */
__noinline int tell_request(const struct request *request, __u64 outcome)
{
	struct telling told = {};

	if (!request)
		return 0;
	told.outcome = unpacked(outcome);
	told.dentry = request->at.dentry;
	told.mnt = request->at.mnt;
	told.generation = request->generation;
	told.operation = request->operation;
	told.condition = request->condition;
	return may_tell(&told) ? tell(&told) : 0;
}

/* The decision, and its event. Returns 0 or -EPERM. */
static __always_inline int decide(struct request *request)
{
	__u64 outcome = is_free(request) ? 0 : weigh_request(request);

	if (unpacked(outcome).verdict < VERDICT_AUDIT)
		return 0;
	tell_request(request, outcome);
	return unpacked(outcome).verdict == VERDICT_BLOCK ? -EPERM : 0;
}

/* The actor's workload. Without memory to keep it: unknown. Kernel threads are in none. */
static __always_inline void enter_workload(struct request *request, struct task_struct *task, struct subject *subject)
{
	__u32 profile = task->mm ? UNKNOWN_PROFILE : HOST_PROFILE;

	if (subject) {
		refresh_membership(&subject->member, request->at.copy, request->generation);
		profile = subject->member.profile;
		request->flags |= subject->member.also << ALSO_SHIFT;
	}
	act_in(request, profile);
}

/*
 * Who acts, under which generation. Uses ``request->at``, so that is filled later. Returns the
 * actor's entry, if it has one; ``going``: whether rules hold.
 */
static __always_inline struct subject *identify(struct request *request, int *going)
{
	struct task_struct *task = bpf_get_current_task_btf();
	struct subject *subject;
	struct head *head;

	request->at.copy = active_copy();
	head = head_of(request->at.copy);
	*going = head && head->generation;
	if (!*going)
		return NULL;
	request->generation = head->generation;
	request->flags |= (head->has_lists ? REQUEST_LISTS : 0) | (head->has_inodes ? REQUEST_INODES : 0) |
			  (head->has_profiles ? REQUEST_WORKLOADS : 0);
	if (task->signal->tty)
		request->condition |= CONDITION_TTY;
	subject = subject_of(task, request->generation, &request->at);
	request->class = request->at.set;
	if (subject) {
		request->alias = subject->alias;
		request->extra = past_class(&subject->loaded, request->at.copy, request->generation);
	}
	if (request->flags & REQUEST_WORKLOADS)
		enter_workload(request, task, subject);
	return subject;
}

static __always_inline struct subject *start_request(struct request *request, int *going)
{
	struct subject *subject = identify(request, going);

	if (*going)
		count(COUNT_DECISIONS);
	return subject;
}

static __always_inline __u32 owner_condition(struct inode *inode)
{
	struct task_struct *task = bpf_get_current_task_btf();

	return inode->i_uid.val == task->cred->fsuid.val ? CONDITION_OWNER : 0;
}

static __always_inline __u32 named_set(const struct request *request, const struct inode *inode)
{
	const struct inode_sets *named = request->flags & REQUEST_INODES ? named_inode(inode, request->at.copy) : NULL;

	if (!named)
		return NO_SET;
	return request->at.space == SPACE_PROCESS ? named->set[ENTITY_PROCESS] : named->set[ENTITY_FILE];
}

/* Fills all that tables say of the file ``inode`` at ``path``, from the cache if it is there. */
static __always_inline void locate(struct request *request, const struct path *path, struct inode *inode, __u32 entity)
{
	struct located *kept = located_of(inode);
	struct dentry *dentry = path->dentry;
	struct vfsmount *mnt = path->mnt;
	struct lookup *at = &request->at;
	__u64 stamp = stamp_of(dentry, mnt, request->generation);

	at->dentry = (__u64)dentry;
	at->mnt = (__u64)mnt;
	at->space = entity;
	if (recall(kept, at, stamp, &request->named))
		return;
	request->named = named_set(request, inode);
	path_sets(at);
	/* If something moved meanwhile, the decision may be of before or after, but it is not kept. */
	if (stamp == stamp_of(dentry, mnt, request->generation))
		remember(kept, at, stamp, request->named);
}

/* Decides an operation on a file that is there. Returns 0 or -EPERM. */
static __always_inline int enforce(__u32 entity, __u32 operation, const struct path *path, struct inode *inode, __u32 condition)
{
	struct request request = {.operation = operation, .condition = condition | owner_condition(inode)};
	int going;

	start_request(&request, &going);
	if (!going)
		return 0;
	locate(&request, path, inode, entity);
	return decide(&request);
}

/* Functions of their own, like those above, for what is told of a dentry that is only a number. */
__noinline __u32 named_set_of(__u64 dentry, __u32 copy)
{
	struct dentry *at = (void *)dentry;
	struct inode *inode = BPF_CORE_READ(at, d_inode);
	struct inode_key key = inode_key_of(inode);
	void *table = bpf_map_lookup_elem(&inodes, &copy);
	const struct inode_sets *sets = table && inode ? bpf_map_lookup_elem(table, &key) : NULL;

	return sets ? sets->set[ENTITY_FILE] : NO_SET;
}

/* What is not there yet will belong to who makes it. */
__noinline __u32 owner_of_name(__u64 dentry)
{
	struct task_struct *task = bpf_get_current_task_btf();
	struct dentry *at = (void *)dentry;
	struct inode *inode = BPF_CORE_READ(at, d_inode);

	return !inode || BPF_CORE_READ(inode, i_uid.val) == task->cred->fsuid.val ? CONDITION_OWNER : 0;
}

/* Decides an operation on a name, under which nothing need be yet; ``mnt`` 0: not known. Returns whether not. Verified for itself. */
__noinline int refuses_name(__u32 operation, __u64 dentry, __u64 mnt, __u32 flags)
{
	struct request request = {.operation = operation, .condition = CONDITION_WRITE, .flags = flags};
	int going;

	request.condition |= owner_of_name(dentry);
	start_request(&request, &going);
	if (!going)
		return 0;
	request.at.dentry = dentry;
	request.at.mnt = mnt;
	request.at.space = SPACE_FILE;
	path_sets(&request.at);
	if (request.flags & REQUEST_INODES)
		request.named = named_set_of(dentry, request.at.copy);
	return decide(&request);
}

static __always_inline int enforce_name(__u32 operation, __u64 dentry, __u64 mnt, __u32 flags)
{
	return refuses_name(operation, dentry, mnt, flags) ? -EPERM : 0;
}

#endif

/* SPDX-License-Identifier: GPL-2.0-only */
/*
 * Rules as tables, and the one decision helper of all LSM programs. The tables are made and tested in user space
 * (garrison.minion.enforcers.bpf_lsm.program says what they mean; layout.py writes them); here they are only walked.
 * Who acts is a *subject*: the class of its program and the profile of its workload in one number.
 *
 * Every table stands twice. ``active`` says which copy holds; user space fills the other one and switches, so that each decision is
 * made by exactly one generation. User space refills a copy only after a grace period, when no program can still read it.
 *
 * A path is looked up twice over: by the names on the way up through the mounts, and by where it lies under an *anchor*: a directory
 * on the way to what a rule names, known by device and inode since the rules were compiled. The second is its *home*: what it
 * would be called had nobody bind-mounted or renamed a directory since. Mostly the two are one.
 *
 * Cost: two walks up the path, two look-ups per component, one more walk with a step per byte if there are globs, three look-ups
 * for the outcome. None of it depends on how many rules there are.
 *
 * Unresolved paths (see path_walk.h) lead to the set of all block rules: fail-closed. A table that lacks an entry which it must
 * have (a union, a record's row) is a bug of the compiler: counted as ERROR_TABLE and treated as unresolved.
 */
#ifndef GARRISON_RULE_TABLES_H
#define GARRISON_RULE_TABLES_H

#include "path_hash.h"
#include "table_copies.h"

enum entity { ENTITY_PROCESS, ENTITY_FILE, ENTITIES };
enum space { SPACE_PROCESS, SPACE_FILE, SPACE_SOURCE, SPACES };
enum verdict { VERDICT_NONE, VERDICT_ALLOW, VERDICT_AUDIT, VERDICT_BLOCK };

#define NO_SET 0
#define ANY_CLASS 0
#define UNKNOWN_CLASS 1
#define CLASS_BITS 22 /* of a subject; the rest is the actor's profile (workloads.h) */
#define CLASS_MASK ((1U << CLASS_BITS) - 1)
#define CONDITIONS 16
#define CONDITION_OWNER 1
#define CONDITION_WRITE 2
#define CONDITION_TTY 4
#define CONDITION_ARGS 8
#define DFA_START 1
#define DFA_DEAD 0

struct outcome {
	__u8 verdict;
	__u8 by_posture;
	__u16 pad;
	__u32 rule; /* number in the generation; 0 for none */
};
_Static_assert(sizeof(struct outcome) == 8, "struct outcome");

struct record {
	struct outcome by[CONDITIONS];
};
_Static_assert(sizeof(struct record) == 128, "struct record");

struct sets {
	__u32 exact, child, deep;
};

struct inode_key {
	__u64 ino;
	__u32 dev; /* as in the kernel: major << 20 | minor */
	__u32 pad;
};

/* By the hash of its path; the root's is 0 and it is always there. */
struct node {
	struct sets process, file, source;
	__u32 below; /* set of the file rules that name something at or below it */
};
_Static_assert(sizeof(struct node) == 40, "struct node");

struct dfa_state {
	__u32 base, otherwise, accept;
};

struct dfa_slot {
	__u32 owner, next;
};

struct union_key {
	__u32 tree, glob, name;
};

struct record_key {
	__u32 set, subject;
};

static __always_inline __u32 subject_in(__u32 class, __u32 profile)
{
	return (class & CLASS_MASK) | profile << CLASS_BITS;
}

struct arg_key {
	__u32 set;
	__u32 len;  /* and in the upper half the profile, of those that have a list of their own: with length and hash 0 it says so */
	__u64 hash; /* enforce_exec.bpf.c says of what kind */
};

struct glob_sets {
	__u32 set[ENTITIES];
};

struct head {
	__u32 generation; /* rises with each switch; 0: nothing was applied yet */
	__u32 has_globs;
	__u32 has_names;
	__u32 has_anchors;
	__u32 has_args;
	__u32 has_lists;  /* postures */
	__u32 has_inodes;
	__u32 has_profiles; /* rules for workloads */
	__u32 unresolved[ENTITIES];
	__u8 classes[256];
};
_Static_assert(sizeof(struct head) == 296, "struct head");

/* ---- Maps ------------------------------------------------------------------------------------------------------------- */
/*
 * All of these are written by user space and only read here. Keys 0 and 1 of the outer maps are the two copies. A full table is
 * an error when it is filled: the generation is then not switched to.
 */
TWO_COPIES(heads, BPF_MAP_TYPE_ARRAY, BPF_F_INNER_MAP, sizeof(__u32), sizeof(struct head));
TWO_COPIES(nodes, BPF_MAP_TYPE_HASH, 0, sizeof(__u64), sizeof(struct node));
TWO_COPIES(anchors, BPF_MAP_TYPE_HASH, 0, sizeof(struct inode_key), sizeof(__u64)); /* directory -> hash of its path */
TWO_COPIES(args, BPF_MAP_TYPE_HASH, 0, sizeof(struct arg_key), sizeof(__u32)); /* argument that a set's rules list -> 1 */
TWO_COPIES(names, BPF_MAP_TYPE_HASH, 0, sizeof(__u64), sizeof(__u32));
TWO_COPIES(dfa_states, BPF_MAP_TYPE_ARRAY, BPF_F_INNER_MAP, sizeof(__u32), sizeof(struct dfa_state));
TWO_COPIES(dfa_slots, BPF_MAP_TYPE_ARRAY, BPF_F_INNER_MAP, sizeof(__u32), sizeof(struct dfa_slot));
TWO_COPIES(globs, BPF_MAP_TYPE_ARRAY, BPF_F_INNER_MAP, sizeof(__u32), sizeof(struct glob_sets));
TWO_COPIES(unions, BPF_MAP_TYPE_HASH, 0, sizeof(struct union_key), sizeof(__u32));
TWO_COPIES(rows, BPF_MAP_TYPE_HASH, 0, sizeof(struct record_key), sizeof(__u32));
TWO_COPIES(records, BPF_MAP_TYPE_ARRAY, BPF_F_INNER_MAP, sizeof(__u32), sizeof(struct record));
/* Posture by class, kept as records too: key.set is POSTURE_OF(entity). */
#define POSTURE_OF(entity) (0xffffffffU - (entity))
/* Likewise: classes of programs that others may not take over. */
#define TRACE_SET (0xffffffffU - 16)

/* Key 0: which copy holds. */
struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(max_entries, 1);
	__type(key, __u32);
	__type(value, __u32);
} active SEC(".maps");

/* ---- Looking a path up ------------------------------------------------------------------------------------------------ */

static __always_inline __u32 active_copy(void)
{
	__u32 zero = 0, *copy = bpf_map_lookup_elem(&active, &zero);

	return copy ? *copy & 1 : 0;
}

static __always_inline struct head *head_of(__u32 copy)
{
	__u32 zero = 0;
	void *inner = bpf_map_lookup_elem(&heads, &copy);

	return inner ? bpf_map_lookup_elem(inner, &zero) : NULL;
}

static __always_inline struct inode_key inode_key_of(const struct inode *inode)
{
	struct inode_key key = {.ino = BPF_CORE_READ(inode, i_ino), .dev = BPF_CORE_READ(inode, i_sb, s_dev)};

	return key;
}

static __always_inline void walk_from(struct walk *walk, __u64 dentry, __u64 mnt)
{
	walk->dentry = (void *)dentry;
	walk->mnt = mnt ? mount_of((void *)mnt) : NULL;
	walk->name = NULL;
	walk->len = 0;
	walk->state = dentry ? WALK_GOING : WALK_UNRESOLVED;
}

/* A path, and what the tables say of it. */
struct lookup {
	__u64 dentry;
	__u64 mnt; /* 0: not known; there are no names to go by then, and the path is its home */
	__u64 last; /* hash of its last component */
	__u64 sum;  /* hash of it all; 0 when it cannot be told */
	__u32 copy;
	__u32 space;
	__u32 set;   /* by its names */
	__u32 home;  /* by where it lies under an anchor; the same as by its names without one */
	__u32 below; /* set of the file rules about what is at and below it, by either way */
	__u32 pad;
};

/*
 * The deepest node of the tree that lies on a path. The first walk hashes the whole path and finds the first anchor; if the tree has a
 * node at the path's hash, that is it. The second takes one component after the other off the end, so the first directory that
 * is found is the deepest.
 */
struct climb {
	struct walk at;
	__u64 sum;   /* of the path; on the second walk of what is left of it */
	__u64 power; /* hash_factor to the number of components so far */
	__u64 last;
	__u64 home; /* hash of its path by the nearest anchor */
	__u32 copy;
	__u32 taken; /* components */
	__u32 set;
	__u32 below;
	__u8 space;
	__u8 found;
	__u8 seek; /* an anchor is still sought */
	__u8 anchored;
	__u8 split; /* a mount was crossed in the middle of a file system before an anchor was met */
	__u8 pad[3];
};

/* By comparison, not by index: an index read back from memory has no bounds for the verifier. */
static __always_inline const struct sets *sets_of(const struct node *node, __u8 space)
{
	return space == SPACE_PROCESS ? &node->process : space == SPACE_FILE ? &node->file : &node->source;
}

static __always_inline void seek_anchor(struct climb *climb)
{
	struct dentry *dentry = climb->at.dentry;
	struct inode_key key = inode_key_of(BPF_CORE_READ(dentry, d_inode));
	void *table = bpf_map_lookup_elem(&anchors, &climb->copy);
	const __u64 *above = table ? bpf_map_lookup_elem(table, &key) : NULL;

	if (!above)
		return;
	climb->home = climb->sum + climb->power * *above;
	climb->anchored = 1;
	climb->seek = 0;
}

static long sum_step(__u32 index, void *context)
{
	struct climb *climb = context;
	struct dentry *left = climb->at.dentry;
	__u64 component;

	if (climb->seek)
		seek_anchor(climb);
	if (!hash_step(&climb->at, &component))
		return 1;
	if (!component) {
		if (climb->seek && BPF_CORE_READ(left, d_parent) != left)
			climb->split = 1;
		return 0;
	}
	if (!climb->last)
		climb->last = component;
	climb->sum += component * climb->power;
	climb->power *= hash_factor;
	return 0;
}

static long climb_step(__u32 index, void *context)
{
	struct climb *climb = context;
	void *table = bpf_map_lookup_elem(&nodes, &climb->copy);
	const struct node *node = table ? bpf_map_lookup_elem(table, &climb->sum) : NULL;
	const struct sets *sets;
	__u64 component;

	if (node) {
		sets = sets_of(node, climb->space);
		climb->set = !climb->taken ? sets->exact : climb->taken == 1 ? sets->child : sets->deep;
		climb->below = climb->taken ? NO_SET : node->below;
		climb->found = 1;
		return 1;
	}
	if (!hash_step(&climb->at, &component))
		return 1;
	if (component) {
		climb->sum = (climb->sum - component) * hash_inverse;
		climb->taken++;
	}
	return 0;
}

static __always_inline void climb_from(struct climb *climb, __u64 dentry, __u64 mnt, __u64 sum)
{
	walk_from(&climb->at, dentry, mnt);
	climb->sum = sum;
	climb->power = 1;
	climb->taken = 0;
	climb->found = 0;
	FORGET(*climb);
}

/*
 * Fills all of ``lookup`` that is not given. A path without names and without an anchor is named by no rule. Negative when the path
 * cannot be told. Verified for itself, for any argument.
 */
__noinline int tree_sets(struct lookup *lookup)
{
	struct climb climb = {};
	const struct head *head;
	__u64 mnt;

	if (!lookup)
		return -1;
	climb.copy = lookup->copy;
	climb.space = lookup->space;
	head = head_of(climb.copy);
	if (!head)
		return -1;
	mnt = lookup->mnt;
	climb.seek = head->has_anchors != 0;
	climb_from(&climb, lookup->dentry, mnt, 0);
	bpf_loop(STEPS_MAX, sum_step, &climb, 0);
	if (mnt && climb.at.state != WALK_ROOT)
		return -1;
	lookup->last = climb.last;
	lookup->sum = climb.sum;
	lookup->set = lookup->home = lookup->below = NO_SET;
	if (climb.seek && climb.split) {
		mnt = 0;
		climb_from(&climb, lookup->dentry, 0, 0);
		bpf_loop(STEPS_MAX, sum_step, &climb, 0);
	}
	/* One step more than components: the last looks the root up. A directory renamed meanwhile leads nowhere: unresolved. */
	if (climb.anchored && (!lookup->mnt || climb.home != lookup->sum)) {
		climb_from(&climb, lookup->dentry, mnt, climb.home);
		bpf_loop(STEPS_MAX + 1, climb_step, &climb, 0);
		if (!climb.found)
			return -1;
		lookup->home = climb.set;
		lookup->below = climb.below;
	}
	if (!lookup->mnt) {
		lookup->set = lookup->home;
		return 0;
	}
	climb_from(&climb, lookup->dentry, lookup->mnt, lookup->sum);
	bpf_loop(STEPS_MAX + 1, climb_step, &climb, 0);
	if (!climb.found)
		return -1;
	lookup->set = climb.set;
	if (!lookup->home)
		lookup->home = climb.set;
	if (climb.below)
		lookup->below = climb.below;
	return 0;
}

#define PATH_MAX_BYTES 4096
#define GLOB_CHUNK 8 /* bytes of a name read at a time; 32 would cost a newer verifier four times as long */

/* Up the path, byte by byte from its end, through the automaton of globs. */
struct glob_walk {
	struct walk at;
	__u32 copy;
	__u32 state;
	__u32 left; /* bytes of the present component */
	char chunk[GLOB_CHUNK];
};

/* Takes ``*state`` one byte further. */
static __always_inline void dfa_step(void *states, void *slots, const struct head *head, __u32 *state, __u8 byte)
{
	const struct dfa_state *row = bpf_map_lookup_elem(states, state);
	const struct dfa_slot *slot;
	__u32 at;

	if (!row) {
		*state = DFA_DEAD;
		return;
	}
	at = row->base + head->classes[byte];
	slot = bpf_map_lookup_elem(slots, &at);
	*state = slot && slot->owner == *state ? slot->next : row->otherwise;
}

/* One turn: a step up when the present component is done, then up to GLOB_CHUNK bytes of it. */
static long glob_turn(__u32 index, void *context)
{
	struct glob_walk *walk = context;
	void *states = bpf_map_lookup_elem(&dfa_states, &walk->copy), *slots = bpf_map_lookup_elem(&dfa_slots, &walk->copy);
	const struct head *head = head_of(walk->copy);
	__u32 left, n, i;

	if (!walk->left) {
		if (!walk_step(&walk->at))
			return 1;
		if (!walk->at.name)
			return 0;
		walk->left = walk->at.len;
	}
	left = walk->left;
	n = left > GLOB_CHUNK ? GLOB_CHUNK : left;
	if (!states || !slots || !head || !n || n > GLOB_CHUNK || left >= NAME_MAX_BYTES ||
	    bpf_probe_read_kernel(walk->chunk, n, walk->at.name + (left - n))) {
		walk->at.state = WALK_UNRESOLVED;
		return 1;
	}
	walk->left = left - n;
	for (i = 0; i < GLOB_CHUNK; i++) {
		if (i >= n)
			break;
		dfa_step(states, slots, head, &walk->state, walk->chunk[(n - 1 - i) & (GLOB_CHUNK - 1)]);
	}
	if (!walk->left)
		dfa_step(states, slots, head, &walk->state, '/');
	return walk->state == DFA_DEAD;
}

/* Index of what the globs accept; negative when that cannot be told. Verified for itself, for any argument. */
__noinline int glob_accept(__u64 dentry, __u64 mnt, __u32 copy)
{
	struct glob_walk walk = {.copy = copy, .state = DFA_START};
	const struct dfa_state *row;
	void *states;

	walk_from(&walk.at, dentry, mnt);
	FORGET(walk);
	if (walk.at.state == WALK_GOING)
		bpf_loop(STEPS_MAX + PATH_MAX_BYTES / GLOB_CHUNK, glob_turn, &walk, 0);
	if (walk.state == DFA_DEAD)
		return 0;
	if (walk.at.state != WALK_ROOT)
		return -1;
	states = bpf_map_lookup_elem(&dfa_states, &copy);
	row = states ? bpf_map_lookup_elem(states, &walk.state) : NULL;
	return row ? row->accept : -1;
}

#endif

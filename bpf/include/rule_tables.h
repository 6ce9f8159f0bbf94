/* SPDX-License-Identifier: GPL-2.0-only */
/*
 * Rules as tables, and the one decision helper of all LSM programs. The tables are made and tested in user space
 * (garrison.minion.enforcers.bpf_lsm.program says what they mean; layout.py writes them); here they are only walked.
 *
 * Every table stands twice. ``active`` says which copy holds; user space fills the other one and switches, so that each decision is
 * made by exactly one generation. User space refills a copy only after a grace period, when no program can still read it.
 *
 * Cost: two walks up the path, one look-up per component, one more walk with a step per byte if there are globs, three look-ups
 * for the outcome. None of it depends on how many rules there are.
 *
 * Unresolved paths (see path_walk.h) lead to the set of all block rules: fail-closed. A table that lacks an entry which it must
 * have (a union, a record's row) is a bug of the compiler: counted as ERROR_TABLE and treated as unresolved.
 */
#ifndef GARRISON_RULE_TABLES_H
#define GARRISON_RULE_TABLES_H

#include "path_hash.h"

enum entity { ENTITY_PROCESS, ENTITY_FILE, ENTITIES };
enum space { SPACE_PROCESS, SPACE_FILE, SPACE_SOURCE, SPACES };
enum verdict { VERDICT_NONE, VERDICT_ALLOW, VERDICT_AUDIT, VERDICT_BLOCK };

#define STEPS_MAX 4096 /* components and mounts; the longest path that the kernel resolves at once has 2,048 components */
#define NO_SET 0
#define ANY_CLASS 0
#define UNKNOWN_CLASS 1
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

/* By the hash of its path; the root's is 0 and it is always there. */
struct node {
	struct sets process, file, source;
};
_Static_assert(sizeof(struct node) == 36, "struct node");

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

struct glob_sets {
	__u32 set[ENTITIES];
};

struct head {
	__u32 generation; /* rises with each switch; 0: nothing was applied yet */
	__u32 has_globs;
	__u32 has_names;
	__u32 pad;
	__u32 unresolved[ENTITIES];
	__u8 classes[256];
};
_Static_assert(sizeof(struct head) == 280, "struct head");

/* ---- Maps ------------------------------------------------------------------------------------------------------------- */
/*
 * All of these are written by user space and only read here. Keys 0 and 1 of the outer maps are the two copies. A full table is
 * an error when it is filled: the generation is then not switched to.
 */
#define TWO_COPIES(NAME, TYPE, FLAGS, KEY_SIZE, VALUE_SIZE)                                                            \
	struct NAME##_copy {                                                                                           \
		__uint(type, TYPE);                                                                                    \
		__uint(max_entries, 1);                                                                                \
		__uint(map_flags, FLAGS);                                                                              \
		__uint(key_size, KEY_SIZE); /* sizes: clang 14 leaves the types of inner maps out of BTF */            \
		__uint(value_size, VALUE_SIZE);                                                                        \
	};                                                                                                             \
	struct {                                                                                                       \
		__uint(type, BPF_MAP_TYPE_ARRAY_OF_MAPS);                                                              \
		__uint(max_entries, 2);                                                                                \
		__type(key, __u32);                                                                                    \
		__array(values, struct NAME##_copy);                                                                   \
	} NAME SEC(".maps")

TWO_COPIES(heads, BPF_MAP_TYPE_ARRAY, BPF_F_INNER_MAP, sizeof(__u32), sizeof(struct head));
TWO_COPIES(nodes, BPF_MAP_TYPE_HASH, 0, sizeof(__u64), sizeof(struct node));
TWO_COPIES(names, BPF_MAP_TYPE_HASH, 0, sizeof(__u64), sizeof(__u32));
TWO_COPIES(dfa_states, BPF_MAP_TYPE_ARRAY, BPF_F_INNER_MAP, sizeof(__u32), sizeof(struct dfa_state));
TWO_COPIES(dfa_slots, BPF_MAP_TYPE_ARRAY, BPF_F_INNER_MAP, sizeof(__u32), sizeof(struct dfa_slot));
TWO_COPIES(globs, BPF_MAP_TYPE_ARRAY, BPF_F_INNER_MAP, sizeof(__u32), sizeof(struct glob_sets));
TWO_COPIES(unions, BPF_MAP_TYPE_HASH, 0, sizeof(struct union_key), sizeof(__u32));
TWO_COPIES(rows, BPF_MAP_TYPE_HASH, 0, sizeof(struct record_key), sizeof(__u32));
TWO_COPIES(records, BPF_MAP_TYPE_ARRAY, BPF_F_INNER_MAP, sizeof(__u32), sizeof(struct record));
/* Posture by class, kept as records too: key.set is POSTURE_OF(entity). */
#define POSTURE_OF(entity) (0xffffffffU - (entity))

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

/*
 * The deepest node of the tree that lies on a path. The first walk hashes the whole path; if the tree has a node there, that is it.
 * The second takes one component after the other off the end, so the first directory that is found is the deepest.
 */
struct climb {
	struct hash_walk hash; /* of the path; on the second walk of what is left of it */
	__u64 last;	       /* hash of its last component */
	struct sets sets;
	__u32 copy;
	__u32 space;
	__u32 taken; /* components */
	__u32 found;
};

/* By comparison, not by index: an index read back from memory has no bounds for the verifier. */
static __always_inline struct sets sets_of(const struct node *node, __u32 space)
{
	return space == SPACE_PROCESS ? node->process : space == SPACE_FILE ? node->file : node->source;
}

static long sum_step(__u32 index, void *context)
{
	struct climb *climb = context;
	__u64 component;

	if (!hash_step(&climb->hash.at, &component))
		return 1;
	if (!component)
		return 0;
	if (!climb->last)
		climb->last = component;
	climb->hash.sum += component * climb->hash.power;
	climb->hash.power *= hash_factor;
	return 0;
}

static long climb_step(__u32 index, void *context)
{
	struct climb *climb = context;
	void *table = bpf_map_lookup_elem(&nodes, &climb->copy);
	const struct node *node = table ? bpf_map_lookup_elem(table, &climb->hash.sum) : NULL;
	__u64 component;

	if (node) {
		climb->sets = sets_of(node, climb->space);
		climb->found = 1;
		return 1;
	}
	if (!hash_step(&climb->hash.at, &component))
		return 1;
	if (component) {
		climb->hash.sum = (climb->hash.sum - component) * hash_inverse;
		climb->taken++;
	}
	return 0;
}

/* Fills ``climb``, of which copy and space are set. Returns whether the path was resolved. */
static __always_inline int climb_path(struct climb *climb, struct path *path)
{
	climb->hash.power = 1;
	walk_start(&climb->hash.at, path);
	FORGET(*climb);
	if (climb->hash.at.state == WALK_GOING)
		bpf_loop(STEPS_MAX, sum_step, climb, 0);
	if (climb->hash.at.state != WALK_ROOT)
		return 0;
	walk_start(&climb->hash.at, path);
	FORGET(climb->hash.at);
	/* One step more than components: the last looks the root up. A directory renamed meanwhile leads nowhere: unresolved. */
	bpf_loop(STEPS_MAX + 1, climb_step, climb, 0);
	return climb->found;
}

#define GLOB_CHUNK 32 /* bytes of a name read at a time */

/* Up the path, byte by byte from its end, through the automaton of globs. */
struct glob_walk {
	struct walk at;
	__u32 copy;
	__u32 state;
	__u32 left; /* bytes of the present component */
	__u32 broken;
	char chunk[GLOB_CHUNK];
};

static __always_inline __u32 dfa_step(void *states, void *slots, const struct head *head, __u32 state, __u8 byte)
{
	const struct dfa_state *row = bpf_map_lookup_elem(states, &state);
	const struct dfa_slot *slot;
	__u32 at;

	if (!row)
		return DFA_DEAD;
	at = row->base + head->classes[byte];
	slot = bpf_map_lookup_elem(slots, &at);
	return slot && slot->owner == state ? slot->next : row->otherwise;
}

static long glob_chunk(__u32 index, void *context)
{
	struct glob_walk *walk = context;
	void *states = bpf_map_lookup_elem(&dfa_states, &walk->copy), *slots = bpf_map_lookup_elem(&dfa_slots, &walk->copy);
	const struct head *head = head_of(walk->copy);
	__u32 left = walk->left, n = left > GLOB_CHUNK ? GLOB_CHUNK : left, state = walk->state, i;

	if (!states || !slots || !head || !n || n > GLOB_CHUNK || left >= NAME_MAX_BYTES)
		return 1;
	if (bpf_probe_read_kernel(walk->chunk, n, walk->at.name + (left - n))) {
		walk->broken = 1;
		return 1;
	}
	for (i = 0; i < GLOB_CHUNK; i++) {
		if (i >= n)
			break;
		state = dfa_step(states, slots, head, state, walk->chunk[(n - 1 - i) & (GLOB_CHUNK - 1)]);
	}
	walk->state = state;
	walk->left = left - n;
	return walk->left == 0;
}

static long glob_step(__u32 index, void *context)
{
	struct glob_walk *walk = context;
	void *states, *slots;
	const struct head *head;

	if (!walk_step(&walk->at))
		return 1;
	if (!walk->at.name)
		return 0;
	walk->left = walk->at.len;
	bpf_loop(NAME_MAX_BYTES / GLOB_CHUNK, glob_chunk, walk, 0);
	states = bpf_map_lookup_elem(&dfa_states, &walk->copy);
	slots = bpf_map_lookup_elem(&dfa_slots, &walk->copy);
	head = head_of(walk->copy);
	if (walk->left || walk->broken || !states || !slots || !head) {
		walk->broken = 1;
		return 1;
	}
	walk->state = dfa_step(states, slots, head, walk->state, '/');
	return walk->state == DFA_DEAD;
}

/* Index of what the globs accept; negative when that cannot be told. Verified for itself, for any argument. */
__noinline int glob_accept(__u64 dentry, __u64 mnt, __u32 copy)
{
	struct glob_walk walk = {.copy = copy, .state = DFA_START};
	struct path path = {.dentry = (void *)dentry, .mnt = (void *)mnt};
	const struct dfa_state *row;
	void *states;

	walk_start(&walk.at, &path);
	FORGET(walk);
	if (walk.at.state == WALK_GOING)
		bpf_loop(STEPS_MAX, glob_step, &walk, 0);
	if (walk.state == DFA_DEAD)
		return 0;
	if (walk.broken || walk.at.state != WALK_ROOT)
		return -1;
	states = bpf_map_lookup_elem(&dfa_states, &copy);
	row = states ? bpf_map_lookup_elem(states, &walk.state) : NULL;
	return row ? row->accept : -1;
}

#endif

/* SPDX-License-Identifier: GPL-2.0-only */
/*
 * What rules say of a path, kept with its inode.
 *
 * A file is told by its path, by its home (rule_tables.h), and by (device, inode) when a rule names it and it existed as the rules were
 * compiled.
 *
 * A cache entry holds for one dentry of one parent, name and mount in one generation, while no directory was renamed (``epoch``,
 * watch.bpf.c) and no mount of its namespace changed (the namespace's own counter). No memory for an entry: the path is walked again
 * next time.
 */
#ifndef GARRISON_PLACES_H
#define GARRISON_PLACES_H

#include "figures.h"
#include "rule_tables.h"

#define MAX_ERRNO 4095
#define S_IFMT 0170000
#define S_IFDIR 0040000

/* ---- Maps ----------------------------------------------------------------------------------------------------------------- */

/* How a path was reached. All zero: nowhere. */
struct place {
	__u64 dentry;
	__u64 mnt;
	__u64 stamp; /* keyed digest of all that changes when something moves, or rules change */
};

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

/* ---- Walking -------------------------------------------------------------------------------------------------------------- */

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

/* ---- Keeping -------------------------------------------------------------------------------------------------------------- */

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

#endif

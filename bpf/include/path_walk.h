/* SPDX-License-Identifier: GPL-2.0-only */
/*
 * Paths, by walking dentries and mounts up to the root of the mount namespace: what /proc/PID/exe shows, also inside containers,
 * and also where bpf_d_path() is not offered. Here: one step, and names for an event; keyed hashes are in path_hash.h.
 *
 * Unresolved: a dentry that hangs on no root (memfd, file handles), a mount that was taken down under the file, more steps than
 * the sink takes, or a name that cannot be read. The caller decides what that means; it is never a shorter path.
 * A walk that starts without a mount goes up to the root of the file system and ends there, unresolved.
 */
#ifndef GARRISON_PATH_WALK_H
#define GARRISON_PATH_WALK_H

#include "kernel_types.h"

#include <bpf/bpf_core_read.h>
#include <bpf/bpf_helpers.h>

#define NAME_MAX_BYTES 256 /* NAME_MAX of linux/limits.h, and the NUL */
#define STEPS_MAX 4096 /* components and mounts; the longest path that the kernel resolves at once has 2,048 components */

enum walk_state {
	WALK_GOING,
	WALK_ROOT,	 /* arrived */
	WALK_UNRESOLVED, /* see above */
};

/* Where the walk is. ``name`` is what the last step left behind it; NULL when it only crossed a mount. */
struct walk {
	struct dentry *dentry;
	struct mount *mnt;
	const unsigned char *name;
	__u32 len;
	__u32 state;
};

/*
 * Before 6.7 the verifier looks at the callback of bpf_loop() for one turn only, and takes out branches that this turn cannot take:
 * what a callback leaves for its next turn must not have a value that the verifier knows. Copying memory onto itself by a helper
 * makes it forget. Not for memory that holds pointers which the program follows itself.
 */
#define FORGET(x) bpf_probe_read_kernel(&(x), sizeof(x), &(x))

static __always_inline struct mount *mount_of(struct vfsmount *mnt)
{
	return (void *)mnt - bpf_core_field_offset(struct mount, mnt);
}

static __always_inline void walk_start(struct walk *walk, struct path *path)
{
	struct vfsmount *mnt = BPF_CORE_READ(path, mnt);

	walk->dentry = BPF_CORE_READ(path, dentry);
	walk->mnt = mnt ? mount_of(mnt) : NULL;
	walk->name = NULL;
	walk->len = 0;
	walk->state = walk->dentry ? WALK_GOING : WALK_UNRESOLVED;
}

/* One step up. Returns whether to go on. */
static __always_inline int walk_step(struct walk *walk)
{
	struct dentry *dentry = walk->dentry, *parent;
	struct mount *mnt = walk->mnt;

	walk->name = NULL;
	if (dentry == BPF_CORE_READ(mnt, mnt.mnt_root)) {
		struct mount *up = BPF_CORE_READ(mnt, mnt_parent);

		if (up == mnt) {
			walk->state = BPF_CORE_READ(mnt, mnt_ns) ? WALK_ROOT : WALK_UNRESOLVED;
			return 0;
		}
		walk->dentry = BPF_CORE_READ(mnt, mnt_mountpoint);
		walk->mnt = up;
		return 1;
	}
	parent = BPF_CORE_READ(dentry, d_parent);
	if (parent == dentry || !parent) {
		walk->state = WALK_UNRESOLVED;
		return 0;
	}
	walk->name = BPF_CORE_READ(dentry, d_name.name);
	walk->len = BPF_CORE_READ(dentry, d_name.len);
	walk->dentry = parent;
	return 1;
}

/* ---- Names ------------------------------------------------------------------------------------------------------------ */
#define NAMES_STEPS 512 /* more than fit into PATH_MAX_BYTES with names of usual length; the rest is cut and marked */

/* A walk that writes names into ``out``: NUL-terminated, the last component first. ``limit`` is where the last may begin. */
struct names_walk {
	struct walk at;
	char *out;
	__u32 used;
	__u32 pad;
};

/*
 * Defines NAME(out, path): writes the names of ``path`` into ``out``, which must hold LIMIT + NAME_MAX_BYTES bytes.
 * Returns the bytes used; negative (bytes used, then minus one) when the path is longer or unresolved.
 */
#define DEFINE_WALK_NAMES(NAME, LIMIT)                                                                                 \
	static long NAME##_step(__u32 index, void *context)                                                            \
	{                                                                                                              \
		struct names_walk *walk = context;                                                                     \
		__u32 used = walk->used;                                                                               \
		long n;                                                                                                \
                                                                                                                       \
		if (!walk_step(&walk->at))                                                                             \
			return 1;                                                                                      \
		if (!walk->at.name)                                                                                    \
			return 0;                                                                                      \
		if (used >= (LIMIT)) {                                                                                 \
			walk->at.state = WALK_UNRESOLVED;                                                              \
			return 1;                                                                                      \
		}                                                                                                      \
		n = bpf_probe_read_kernel_str(walk->out + used, NAME_MAX_BYTES, walk->at.name);                        \
		if (n < 0) {                                                                                           \
			walk->at.state = WALK_UNRESOLVED;                                                              \
			return 1;                                                                                      \
		}                                                                                                      \
		walk->used = used + n;                                                                                 \
		return 0;                                                                                              \
	}                                                                                                              \
	static __always_inline int NAME(char *out, struct path *path)                                                  \
	{                                                                                                              \
		struct names_walk walk = {.out = out};                                                                 \
                                                                                                                       \
		walk_start(&walk.at, path);                                                                            \
		FORGET(walk.at);                                                                                       \
		FORGET(walk.used);                                                                                     \
		if (walk.at.state == WALK_GOING)                                                                       \
			bpf_loop(NAMES_STEPS, NAME##_step, &walk, 0);                                                  \
		return walk.at.state == WALK_ROOT ? (int)walk.used : -1 - (int)walk.used;                              \
	}

#endif

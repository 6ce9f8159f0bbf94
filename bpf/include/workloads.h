/* SPDX-License-Identifier: GPL-2.0-only */
/*
 * Which workload the actor runs in: its cgroup's path, hashed like a file's, leads to a *profile*, the number of the scopes that
 * match (garrison.minion.enforcers.bpf_lsm.profiles). Of several cgroups on the way up that are known the innermost counts; user
 * space has put into it what those above it have. By path, not by number, so that a unit is known before it is started, whether
 * the agent lives or not. A cgroup of version 2 cannot be renamed, and its path here begins at the hierarchy's root, whatever the
 * process sees of it.
 *
 * Who was in a container stays its: leaving adds what holds elsewhere and takes nothing away. Children inherit this. What is deeper in
 * the same container is still in it.
 *
 * A path that cannot be told (more than STEPS_MAX cgroups) counts as unknown, and so does a container that user space does not know
 * any more, for those who have left it: rules of every scope count then that refuse or watch.
 */
#ifndef GARRISON_WORKLOADS_H
#define GARRISON_WORKLOADS_H

#include "path_hash.h"
#include "table_copies.h"

#define HOST_PROFILE 0
#define UNKNOWN_PROFILE 1

/* ---- Maps ------------------------------------------------------------------------------------------------------------- */

struct placement {
	__u32 profile;
	__u32 sticky; /* a container's */
};
_Static_assert(sizeof(struct placement) == 8, "struct placement");

/*
 * Hash of a cgroup's path -> what holds in it. Written by user space, also while its copy is active: it raises the epoch after that.
 * Full: user space gives the root UNKNOWN_PROFILE.
 */
TWO_COPIES(cgroups, BPF_MAP_TYPE_HASH, BPF_F_NO_PREALLOC, sizeof(__u64), sizeof(struct placement));

enum workload_figure {
	WORKLOAD_EPOCH, /* rises with each change of the active copy of cgroups; written by user space */
	CGROUPS_MISSED, /* cgroups whose making was not told for want of room; written by watch.bpf.c */
	WORKLOAD_FIGURES
};

struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(max_entries, WORKLOAD_FIGURES);
	__type(key, __u32);
	__type(value, __u32);
} workload_figures SEC(".maps");

#define CGROUP_PATH_BYTES 1024

struct cgroup_made {
	__u64 id;
	char path[CGROUP_PATH_BYTES]; /* from the root of the hierarchy; cut where it is longer */
};
_Static_assert(sizeof(struct cgroup_made) == 1032, "struct cgroup_made");

/* Kept in the task's own storage. All zero: nothing is known. */
struct membership {
	__u64 cgroup;	 /* the cgroup of which it was found */
	__u64 stamp;	 /* generation and epoch likewise */
	__u64 container; /* hash of the path of the container that it is in, or was in; 0 for none */
	__u32 profile;	 /* of its cgroup */
	__u32 also;	 /* of a container that it has left */
};

/* ---- Finding it ------------------------------------------------------------------------------------------------------- */

#define CGROUP_CHUNK 64

/* Bytes of a name without its NUL; 0 when it cannot be read. Verified for itself. */
__noinline __u32 name_length(__u64 name)
{
	char chunk[CGROUP_CHUNK];
	__u32 length = 0;
	long n;
	int i;

	for (i = 0; i <= NAME_MAX_BYTES / (CGROUP_CHUNK - 1); i++) {
		n = bpf_probe_read_kernel_str(chunk, sizeof(chunk), (void *)(name + length));
		if (n <= 0)
			return 0;
		length += n - 1;
		if (n < CGROUP_CHUNK)
			return length;
	}
	return 0;
}

/* On the way up from a cgroup to the root of the hierarchy. */
struct ascent {
	__u64 at;    /* struct cgroup_subsys_state of the cgroup itself */
	__u64 sum;   /* of the path; on the second way of what is left of it */
	__u64 power; /* hash_factor to the number of components so far */
	__u64 container;
	__u64 left;   /* the container that the task was in before */
	__u32 copy;
	__u32 profile;
	__u32 found;
	__u32 inside; /* it is still in there */
	__u32 state;
	__u32 pad;
};

/* One step up, and the hash of the component it left behind. Returns whether to go on. */
static __always_inline int ascend(struct ascent *ascent, __u64 *component)
{
	struct cgroup_subsys_state *self = (void *)ascent->at, *parent = BPF_CORE_READ(self, parent);
	struct cgroup *cgroup = (void *)self - bpf_core_field_offset(struct cgroup, self);
	__u64 name;

	if (!parent) {
		ascent->state = BPF_CORE_READ(cgroup, level) ? WALK_UNRESOLVED : WALK_ROOT;
		return 0;
	}
	name = (__u64)BPF_CORE_READ(cgroup, kn, name);
	*component = hash_name(name, name_length(name));
	if (!*component) {
		ascent->state = WALK_UNRESOLVED;
		return 0;
	}
	ascent->at = (__u64)parent;
	return 1;
}

static long ascend_summing(__u32 index, void *context)
{
	struct ascent *ascent = context;
	__u64 component;

	if (!ascend(ascent, &component))
		return 1;
	ascent->sum += component * ascent->power;
	ascent->power *= hash_factor;
	return 0;
}

static long ascend_seeking(__u32 index, void *context)
{
	struct ascent *ascent = context;
	void *table = bpf_map_lookup_elem(&cgroups, &ascent->copy);
	const struct placement *here = table ? bpf_map_lookup_elem(table, &ascent->sum) : NULL;
	__u64 component;

	if (here && !ascent->found) {
		ascent->profile = here->profile;
		ascent->found = 1;
	}
	if (here && here->sticky && !ascent->container)
		ascent->container = ascent->sum;
	if (ascent->sum == ascent->left)
		ascent->inside = 1;
	if (!ascend(ascent, &component))
		return 1;
	ascent->sum = (ascent->sum - component) * hash_inverse;
	return 0;
}

static __always_inline void ascend_from(struct ascent *ascent, __u64 cgroup)
{
	ascent->at = cgroup;
	ascent->state = WALK_GOING;
	FORGET(*ascent);
}

/* What holds for those who have left a container. */
static __always_inline __u32 left_profile(__u32 copy, __u64 container)
{
	void *table = bpf_map_lookup_elem(&cgroups, &copy);
	const struct placement *there = table ? bpf_map_lookup_elem(table, &container) : NULL;

	return there ? there->profile : UNKNOWN_PROFILE;
}

static __always_inline __u32 workload_epoch(void)
{
	__u32 key = WORKLOAD_EPOCH, *value = bpf_map_lookup_elem(&workload_figures, &key);

	return value ? *value : 0;
}

/* Fills ``kept`` for a task that may be another than the current one; the caller owns ``kept``. Verified for itself. */
__noinline int find_membership(struct membership *kept, __u64 of, __u32 copy, __u64 stamp)
{
	struct task_struct *task = (void *)of;
	struct cgroup *own = BPF_CORE_READ(task, cgroups, dfl_cgrp);
	__u64 cgroup = (__u64)own + bpf_core_field_offset(struct cgroup, self);
	struct ascent ascent = {.copy = copy, .power = 1};
	__u32 also = HOST_PROFILE;

	if (!kept || !own)
		return 0;
	ascent.left = kept->container;
	ascend_from(&ascent, cgroup);
	bpf_loop(STEPS_MAX, ascend_summing, &ascent, 0);
	if (ascent.state == WALK_ROOT) {
		ascend_from(&ascent, cgroup);
		bpf_loop(STEPS_MAX, ascend_seeking, &ascent, 0);
	}
	kept->cgroup = 0; /* an interrupted write must not look whole */
	if (ascent.state != WALK_ROOT)
		ascent.profile = UNKNOWN_PROFILE;
	else if (kept->container && !ascent.inside)
		also = left_profile(copy, kept->container);
	else if (ascent.container)
		kept->container = ascent.container;
	kept->profile = ascent.profile;
	kept->also = also == ascent.profile ? HOST_PROFILE : also;
	kept->stamp = stamp;
	kept->cgroup = BPF_CORE_READ(own, kn, id);
	return 0;
}

/* Brings the membership of the current task up to date. Only the task itself gets here. */
static __always_inline void refresh_membership(struct membership *kept, __u32 copy, __u32 generation)
{
	struct task_struct *task = bpf_get_current_task_btf();
	__u64 stamp = (__u64)generation << 32 | workload_epoch(), id = task->cgroups->dfl_cgrp->kn->id;

	if (kept->cgroup != id || kept->stamp != stamp)
		find_membership(kept, bpf_get_current_task(), copy, stamp);
}

#endif

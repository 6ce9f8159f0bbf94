// SPDX-License-Identifier: GPL-2.0-only
/*
 * KubeArmor's preset ``exec``: what was put into a running workload from outside starts no program there.
 *
 * hook                         duty
 * tp_btf/cgroup_attach_task    a process was moved to another cgroup: did it enter a workload from outside?
 * tp_btf/sched_process_fork    a child is what its parent is; or it was made in another cgroup (clone3)
 * lsm/bprm_check_security      a program is started
 *
 * A workload is entered from outside by who was not in it before, is put there by somebody who is not in it either, and finds
 * somebody there. So its first process is not meant, nor what its own service manager moves about in it, nor what process 1 of
 * the machine puts there (ExecReload, user sessions). What entered stays marked, with all its children, until others move it out.
 *
 * Not covered: who entered before there was such a rule, before the workload was known, or before these programs were replaced by
 * those of another version; who joins namespaces and not the cgroup; what is done without starting a program.
 */
#include <linux/bpf.h>

#include "include/presets.h"

#define LEVELS_MAX 32 /* cgroups that are looked at from one on the way up; deeper ones count as outside */

#pragma clang attribute push(__attribute__((preserve_access_index)), apply_to = record)

struct cgroup___populated {
	int nr_populated_csets;
	int nr_populated_domain_children;
	int nr_populated_threaded_children;
};

struct css_set___populated {
	int nr_tasks;
};

struct signal_struct___threads {
	int nr_threads;
};

#pragma clang attribute pop

/* ---- Maps ------------------------------------------------------------------------------------------------------------- */

struct entry {
	__u64 cgroup; /* struct cgroup_subsys_state of the one that it is in */
	__u32 entered;
	__u32 pad;
};

/* First thread of a process -> where it is. Written by the hooks here; goes with the thread. No memory: it has not entered. */
struct {
	__uint(type, BPF_MAP_TYPE_TASK_STORAGE);
	__uint(map_flags, BPF_F_NO_PREALLOC);
	__type(key, int);
	__type(value, struct entry);
} entries SEC(".maps");

/* ---- Helpers ---------------------------------------------------------------------------------------------------------- */

static __always_inline __u64 cgroup_of(const struct task_struct *task)
{
	return (__u64)BPF_CORE_READ(task, cgroups, dfl_cgrp) + bpf_core_field_offset(struct cgroup, self);
}

/* Whether ``cgroup`` is ``above`` or below it. */
static __always_inline int is_below(__u64 cgroup, __u64 above)
{
	int i;

	for (i = 0; i < LEVELS_MAX; i++) {
		struct cgroup_subsys_state *self = (void *)cgroup;

		if (!cgroup || cgroup == above)
			break;
		cgroup = (__u64)BPF_CORE_READ(self, parent);
	}
	return cgroup && cgroup == above;
}

static __always_inline int populated_children(__u64 cgroup)
{
	struct cgroup___populated *counts = (void *)cgroup - bpf_core_field_offset(struct cgroup, self);

	return BPF_CORE_READ(counts, nr_populated_domain_children) + BPF_CORE_READ(counts, nr_populated_threaded_children);
}

static __always_inline int populated_sets(__u64 cgroup)
{
	struct cgroup___populated *counts = (void *)cgroup - bpf_core_field_offset(struct cgroup, self);

	return BPF_CORE_READ(counts, nr_populated_csets);
}

/* Whether ``task``, in ``cgroup``, is all that is in the workload of ``root``. Verified for itself. */
__noinline int is_alone(__u64 number, __u64 cgroup, __u64 root)
{
	struct task_struct *task = (void *)number;
	struct css_set___populated *set = (void *)BPF_CORE_READ(task, cgroups);
	struct signal_struct___threads *process = (void *)BPF_CORE_READ(task, signal);
	int i;

	if (populated_sets(cgroup) != 1 || populated_children(cgroup) ||
	    BPF_CORE_READ(set, nr_tasks) != BPF_CORE_READ(process, nr_threads))
		return 0;
	for (i = 0; i < LEVELS_MAX && cgroup != root; i++) {
		struct cgroup_subsys_state *self = (void *)cgroup;

		cgroup = (__u64)BPF_CORE_READ(self, parent);
		if (!cgroup || populated_sets(cgroup) || populated_children(cgroup) != 1)
			return 0;
	}
	return cgroup == root;
}

/* On the way up to the innermost cgroup that is known as a workload's. */
struct workload_walk {
	struct ascent ascent;
	__u64 root;
};

static long seek_workload(__u32 index, void *context)
{
	struct workload_walk *walk = context;
	__u64 sum = walk->ascent.sum, component;
	void *table = bpf_map_lookup_elem(&cgroups, &walk->ascent.copy);

	if (table && bpf_map_lookup_elem(table, &sum)) {
		walk->root = walk->ascent.at;
		return 1;
	}
	if (!ascend(&walk->ascent, &component))
		return 1;
	walk->ascent.sum = (walk->ascent.sum - component) * hash_inverse;
	return 0;
}

/* The cgroup of the workload that ``cgroup`` is in; 0: in none. Verified for itself. */
__noinline __u64 workload_of(__u64 cgroup)
{
	struct workload_walk walk = {.ascent.copy = active_copy(), .ascent.power = 1};

	ascend_from(&walk.ascent, cgroup);
	bpf_loop(STEPS_MAX, ascend_summing, &walk.ascent, 0);
	if (walk.ascent.state != WALK_ROOT)
		return 0;
	ascend_from(&walk.ascent, cgroup);
	FORGET(walk.root);
	bpf_loop(STEPS_MAX, seek_workload, &walk, 0);
	return walk.root;
}

static __always_inline int has_entered(struct task_struct *task)
{
	struct entry *entry = bpf_task_storage_get(&entries, task->group_leader, 0, 0);

	return entry && entry->entered;
}

/* Whether ``task``, that was in ``before`` (0: not known) and is in ``cgroup`` now, has entered a workload from outside. */
static __always_inline int enters(struct task_struct *task, __u64 before, __u64 cgroup, int entered)
{
	struct task_struct *mover = bpf_get_current_task_btf();
	__u64 root = workload_of(cgroup);

	/* Rules of a container stay with who leaves it, so leaving must not take the mark away. */
	if (!root)
		return mover->tgid == task->tgid && entered;
	if (is_below(before, root))
		return entered;
	if (mover->tgid != task->tgid && is_below(cgroup_of(mover), root))
		return has_entered(mover);
	return mover->tgid != 1 && !is_alone((__u64)BPF_CORE_READ(task, group_leader), cgroup, root);
}

/* ---- Hooks ------------------------------------------------------------------------------------------------------------ */

SEC("tp_btf/cgroup_attach_task")
int BPF_PROG(watch_attach, struct cgroup *dst, const char *path, struct task_struct *task, _Bool threadgroup)
{
	__u64 cgroup = cgroup_of(task), before;
	struct entry *entry;

	if (BPF_CORE_READ(dst, root, hierarchy_id) || !watching(BIT(PRESET_EXEC)))
		return 0;
	entry = bpf_task_storage_get(&entries, task, 0, BPF_LOCAL_STORAGE_GET_F_CREATE);
	if (!entry)
		return 0;
	before = entry->cgroup;
	entry->entered = enters(task, before, cgroup, entry->entered);
	entry->cgroup = cgroup;
	return 0;
}

SEC("tp_btf/sched_process_fork") int BPF_PROG(watch_fork, struct task_struct *parent, struct task_struct *child)
{
	__u64 cgroup = cgroup_of(child), before = cgroup_of(parent);
	int entered;
	struct entry *entry;

	if (child->tgid == parent->tgid || !watching(BIT(PRESET_EXEC)))
		return 0;
	entered = has_entered(parent);
	if (cgroup != before)
		entered = enters(child, before, cgroup, entered);
	entry = bpf_task_storage_get(&entries, child, 0, BPF_LOCAL_STORAGE_GET_F_CREATE);
	if (!entry)
		return 0;
	entry->cgroup = cgroup;
	entry->entered = entered;
	return 0;
}

SEC("lsm/bprm_check_security") int BPF_PROG(guard_entered, struct linux_binprm *bprm, int ret)
{
	struct task_struct *task = bpf_get_current_task_btf();
	struct entry *entry;

	if (ret || !watching(BIT(PRESET_EXEC)) || !has_entered(task))
		return ret;
	/* A thread that starts a program becomes the first one of its process. */
	entry = bpf_task_storage_get(&entries, task, 0, BPF_LOCAL_STORAGE_GET_F_CREATE);
	if (entry) {
		entry->entered = 1;
		entry->cgroup = cgroup_of(task);
	}
	return refuses_preset(PRESET_EXEC, OP_EXEC, (__u64)BPF_CORE_READ(bprm, file), 0) ? -EPERM : 0;
}

char LICENSE[] SEC("license") = "GPL";

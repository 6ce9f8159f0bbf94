/* SPDX-License-Identifier: GPL-2.0-only */
/*
 * The agent as the kernel sees it: its process and its PID namespace. Programs report PIDs as the agent knows them and tell
 * processes that the agent cannot see from those it can. Filled by ``note_agent``, which the agent runs once after loading.
 */
#ifndef GARRISON_AGENT_H
#define GARRISON_AGENT_H

#include "kernel_types.h"

#include <bpf/bpf_core_read.h>
#include <bpf/bpf_helpers.h>

struct agent {
	__u64 pid_ns; /* address of its struct pid_namespace; alive as long as the agent is */
	__u32 level;  /* depth of that namespace */
	__u32 tgid;   /* the agent's, in the first PID namespace */
};
_Static_assert(sizeof(struct agent) == 16, "struct agent");

/* Key 0. Written once by note_agent. All zero before that: then no PID is known and no process is taken for the agent. */
struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(max_entries, 1);
	__type(key, __u32);
	__type(value, struct agent);
} agent SEC(".maps");

static __always_inline struct upid read_upid(struct pid *pid, __u32 level)
{
	struct upid upid = {};
	void *at = (void *)pid + bpf_core_field_offset(struct pid, numbers) + level * bpf_core_type_size(struct upid);

	bpf_core_read(&upid.nr, sizeof(upid.nr), at + bpf_core_field_offset(struct upid, nr));
	bpf_core_read(&upid.ns, sizeof(upid.ns), at + bpf_core_field_offset(struct upid, ns));
	return upid;
}

static __always_inline struct pid *tgid_of(struct task_struct *task)
{
	return BPF_CORE_READ(task, signal, pids[PIDTYPE_TGID]);
}

/* Process id of ``task`` in the agent's PID namespace; 0 when it has none there. */
static __always_inline __u32 agent_pid(const struct agent *self, struct task_struct *task)
{
	struct pid *pid = tgid_of(task);
	struct upid upid;

	if (!pid || BPF_CORE_READ(pid, level) < self->level)
		return 0;
	upid = read_upid(pid, self->level);
	return (__u64)upid.ns == self->pid_ns ? upid.nr : 0;
}

SEC("syscall") int note_agent(void *context)
{
	struct task_struct *task = (void *)bpf_get_current_task();
	struct pid *pid = tgid_of(task);
	struct agent self = {};
	__u32 zero = 0;

	self.level = BPF_CORE_READ(pid, level);
	self.pid_ns = (__u64)read_upid(pid, self.level).ns;
	self.tgid = BPF_CORE_READ(task, tgid);
	return bpf_map_update_elem(&agent, &zero, &self, BPF_ANY);
}

#endif

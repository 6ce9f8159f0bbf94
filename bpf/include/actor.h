/* SPDX-License-Identifier: GPL-2.0-only */
/* Who acts: the part that all events have in common. Python decodes it in garrison.bpf.records; a test compares the sizes. */
#ifndef GARRISON_ACTOR_H
#define GARRISON_ACTOR_H

#include "agent.h"

#define TTY_BYTES 32 /* "pts/4294967295" and some; longer names are cut */
#define NO_LOGIN 0xffffffffU

struct actor {
	__u64 mono_ns;	 /* CLOCK_MONOTONIC */
	__u64 cgroup_id; /* inode number of the cgroup v2 directory */
	__u32 pid;	 /* in the agent's PID namespace; 0 when it has none there */
	__u32 ppid;
	__u32 uid;  /* effective */
	__u32 auid; /* NO_LOGIN when it belongs to no login */
	__u32 ses;  /* NO_LOGIN likewise */
	__u32 pad;
	char comm[16];
	char tty[TTY_BYTES]; /* empty when it has none */
};
_Static_assert(sizeof(struct actor) == 88, "struct actor");

static __always_inline void fill_actor(struct actor *actor, const struct agent *self, struct task_struct *task)
{
	struct tty_struct *tty = BPF_CORE_READ(task, signal, tty);

	actor->mono_ns = bpf_ktime_get_ns();
	actor->cgroup_id = BPF_CORE_READ(task, cgroups, dfl_cgrp, kn, id);
	actor->pid = agent_pid(self, task);
	actor->ppid = agent_pid(self, BPF_CORE_READ(task, real_parent));
	actor->uid = BPF_CORE_READ(task, cred, euid.val);
	actor->auid = NO_LOGIN;
	actor->ses = NO_LOGIN;
	actor->pad = 0;
	if (bpf_core_field_exists(task->loginuid)) {
		actor->auid = BPF_CORE_READ(task, loginuid.val);
		actor->ses = BPF_CORE_READ(task, sessionid);
	}
	BPF_CORE_READ_STR_INTO(&actor->comm, task, comm);
	actor->tty[0] = 0;
	if (tty)
		bpf_probe_read_kernel_str(actor->tty, sizeof(actor->tty), &tty->name);
}

#endif

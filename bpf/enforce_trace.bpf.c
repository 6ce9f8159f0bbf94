// SPDX-License-Identifier: GPL-2.0-only
/*
 * Programs that a rule allows something are not taken over by others: what they may do would be everybody's.
 *
 * hook                        duty
 * lsm/ptrace_access_check     somebody traces a process, writes its memory, or takes its descriptors
 * lsm/bprm_check_security     a traced process starts such a program
 *
 * Only programs that some rule with a source allows something are held, in workloads in which it does; the rule is named in the event.
 * Programs of the same class in the same workload may, since they may do the same. Workloads are told by the cgroup of the moment.
 * Kernel threads have no program. Reading /proc (PTRACE_MODE_READ) is not this hook's.
 *
 * Not covered: what the program itself lets others do to it: environment, configuration, plug-ins.
 */
#include <linux/bpf.h>

#include "include/enforce.h"

#define PTRACE_MODE_ATTACH 2

struct task_struct___trace {
	unsigned int ptrace;
	struct task_struct *parent; /* who traces it */
} __attribute__((preserve_access_index));

static __always_inline __u32 class_at(__u32 copy, __u64 dentry, __u64 mnt)
{
	struct lookup lookup = {.copy = copy, .dentry = dentry, .mnt = mnt, .space = SPACE_SOURCE};

	path_sets(&lookup);
	return lookup.set;
}

/* A process of a program. */
struct party {
	__u64 task;
	__u64 dentry; /* of the program */
	__u64 mnt;
	struct membership member; /* filled by find_party() */
};

/* Which workload it is in. Verified for itself. */
__noinline int find_party(struct party *party, __u32 copy, __u32 generation)
{
	if (party)
		find_membership(&party->member, party->task, copy, (__u64)generation << 32 | workload_epoch());
	return 0;
}

static __always_inline struct outcome outcome_in(__u32 copy, __u32 class, __u32 profile)
{
	return outcome_of_named(copy, TRACE_SET, subject_in(class, profile), 0);
}

/* Whether ``by`` may not take over ``party``. Verified for itself. */
__noinline int refuses_takeover(struct party *party, struct party *by)
{
	struct telling told = {.operation = OP_TRACE};
	__u32 copy = active_copy(), class;
	const struct head *head = head_of(copy);

	if (!head || !head->generation || !party || !by || !party->dentry || !by->dentry)
		return 0;
	if (head->has_profiles) {
		find_party(party, copy, head->generation);
		find_party(by, copy, head->generation);
	}
	class = class_at(copy, party->dentry, party->mnt);
	told.outcome = outcome_in(copy, class, party->member.profile);
	if (told.outcome.verdict < VERDICT_AUDIT)
		return 0;
	if (by->member.profile == party->member.profile && class_at(copy, by->dentry, by->mnt) == class)
		return 0;
	count(COUNT_DECISIONS);
	told.dentry = party->dentry;
	told.mnt = party->mnt;
	told.generation = head->generation;
	if (may_tell(&told))
		tell(&told);
	return told.outcome.verdict == VERDICT_BLOCK;
}

static __always_inline int guard_program(struct task_struct *task, struct file *file, struct task_struct *by)
{
	struct file *exe = BPF_CORE_READ(by, mm, exe_file);
	struct party party = {.task = (__u64)task}, other = {.task = (__u64)by};

	if (!file || !exe)
		return 0;
	party.dentry = (__u64)BPF_CORE_READ(file, f_path.dentry);
	party.mnt = (__u64)BPF_CORE_READ(file, f_path.mnt);
	other.dentry = (__u64)BPF_CORE_READ(exe, f_path.dentry);
	other.mnt = (__u64)BPF_CORE_READ(exe, f_path.mnt);
	return refuses_takeover(&party, &other) ? -EPERM : 0;
}

SEC("lsm/ptrace_access_check") int BPF_PROG(guard_takeover, struct task_struct *child, unsigned int mode, int ret)
{
	if (ret || !(mode & PTRACE_MODE_ATTACH))
		return ret;
	return guard_program(child, BPF_CORE_READ(child, mm, exe_file), bpf_get_current_task_btf());
}

SEC("lsm/bprm_check_security") int BPF_PROG(guard_traced_exec, struct linux_binprm *bprm, int ret)
{
	struct task_struct *task = bpf_get_current_task_btf();
	struct task_struct___trace *same = (void *)task;

	if (ret || !BPF_CORE_READ(same, ptrace))
		return ret;
	return guard_program(task, bprm->file, BPF_CORE_READ(same, parent));
}

char LICENSE[] SEC("license") = "GPL";

// SPDX-License-Identifier: GPL-2.0-only
/*
 * Which programs may be started.
 *
 * hook                       duty
 * lsm/bprm_check_security    a program or script is started, and then its interpreter
 *
 * Not covered here: mapping a program without starting it (enforce_maps.bpf.c).
 */
#include <linux/bpf.h>

#include "include/enforce.h"

/* What starts a program is its past from when it is started (enforce_maps.bpf.c). A script is checked twice by the same task. */
static __always_inline void note_caller(struct subject *subject)
{
	if (!subject)
		return;
	subject->pending.hash = subject->hash;
	subject->pending.generation = subject->generation;
	subject->pending.class = subject->class ?: subject->alias ?: subject->loaded.class;
}

SEC("lsm/bprm_check_security") int BPF_PROG(guard_exec, struct linux_binprm *bprm, int ret)
{
	struct request request = {.operation = OP_EXEC};
	struct file *file = bprm->file;
	int going;

	if (ret)
		return ret;
	note_caller(start_request(&request, &going));
	if (!going)
		return 0;
	request.condition |= owner_condition(file->f_inode);
	request.at.dentry = (__u64)BPF_CORE_READ(file, f_path.dentry);
	request.at.mnt = (__u64)BPF_CORE_READ(file, f_path.mnt);
	request.at.space = SPACE_PROCESS;
	locate(&request, file->f_inode);
	return decide(&request);
}

char LICENSE[] SEC("license") = "GPL";

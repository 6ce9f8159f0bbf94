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

SEC("lsm/bprm_check_security") int BPF_PROG(guard_exec, struct linux_binprm *bprm, int ret)
{
	struct file *file = bprm->file;

	if (ret)
		return ret;
	return enforce(ENTITY_PROCESS, OP_EXEC, &file->f_path, file->f_inode, 0);
}

char LICENSE[] SEC("license") = "GPL";

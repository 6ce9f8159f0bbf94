// SPDX-License-Identifier: GPL-2.0-only
/*
 * Which files may be opened.
 *
 * hook             duty
 * lsm/file_open    a file is opened: for reading, writing, truncation or execution
 */
#include <linux/bpf.h>

#include "include/enforce.h"

#define FMODE_WRITE 2 /* include/linux/fs.h */
#define O_TRUNC 01000

SEC("lsm/file_open") int BPF_PROG(guard_open, struct file *file, int ret)
{
	__u32 condition = file->f_mode & FMODE_WRITE || file->f_flags & O_TRUNC ? CONDITION_WRITE : 0;

	if (ret)
		return ret;
	return enforce(ENTITY_FILE, OP_OPEN, &file->f_path, file->f_inode, condition);
}

char LICENSE[] SEC("license") = "GPL";

/* SPDX-License-Identifier: GPL-2.0-only */
/*
 * Files that the kernel opens for itself below an overlay, which is what containers have for a root.
 *
 * A program opens a file of the overlay, and that is decided by the path it used. Then overlayfs opens the file of the layer, and
 * before the first write copies it up, with the credentials of who mounted the overlay. These opens are no use of anybody's: no
 * posture applies to them, the owner's own file is the owner's, and nothing is told twice. But the file may be one that rules know by
 * inode, whatever the overlay calls it: such rules hold.
 */
#ifndef GARRISON_LAYERS_H
#define GARRISON_LAYERS_H

#include "enforce.h"

/* include/linux/fs.h */
#define FMODE_BACKING (1u << 25)   /* a file of a layer, from kernel 6.5 on */
#define FMODE_NOACCOUNT (1u << 29) /* only what the kernel opens for itself has it */

/* From kernel 6.5 on ``f_path`` of a layer's file is its place in the layer, and the overlay's is here; before, it is the overlay's. */
struct backing_file___layers {
	struct path user_path;
} __attribute__((preserve_access_index));

/* The kernel works with borrowed credentials, or io_uring with registered ones. */
static __always_inline int acts_as_another(void)
{
	struct task_struct *task = bpf_get_current_task_btf();

	return task->real_cred != task->cred;
}

/* A file of a layer: under an open file of the overlay, or one that is copied up, which takes a mount of the overlay's own. */
static __always_inline int is_in_layer(struct file *file)
{
	return file->f_mode & FMODE_NOACCOUNT || (acts_as_another() && is_nameless((__u64)file->f_path.mnt));
}

/* What rules say that know the file by its inode or its home. */
static __always_inline __u64 weigh_layer(const struct request *request)
{
	__u64 home = weigh_set(request, request->at.home), named = weigh_set(request, request->named);

	return is_stricter(unpacked(named), home) ? named : home;
}

/* Decides the opening of a layer's file, told by the overlay's path. Returns 0 or -EPERM. */
static __always_inline int enforce_layer(struct file *file, __u32 condition)
{
	struct request request = {.operation = OP_OPEN, .condition = condition, .flags = REQUEST_RULES_ONLY};
	struct task_struct *task = bpf_get_current_task_btf();
	struct backing_file___layers *backing = (void *)file;
	__u64 outcome;
	int going;

	if (file->f_inode->i_uid.val == BPF_CORE_READ(task, real_cred, fsuid.val))
		request.condition |= CONDITION_OWNER;
	start_request(&request, &going);
	if (!going)
		return 0;
	locate(&request, &file->f_path, file->f_inode, ENTITY_FILE);
	outcome = weigh_layer(&request);
	if (unpacked(outcome).verdict < VERDICT_AUDIT)
		return 0;
	if (bpf_core_field_exists(backing->user_path) && file->f_mode & FMODE_BACKING) {
		request.at.dentry = (__u64)BPF_CORE_READ(backing, user_path.dentry);
		request.at.mnt = (__u64)BPF_CORE_READ(backing, user_path.mnt);
		path_sets(&request.at);
	}
	if (!is_stricter(unpacked(outcome), weigh_set(&request, request.at.set)))
		return 0;
	tell_request(&request, outcome);
	return unpacked(outcome).verdict == VERDICT_BLOCK ? -EPERM : 0;
}

#endif

// SPDX-License-Identifier: GPL-2.0-only
/*
 * KubeArmor's presets but one: what is never to be done, whatever it is done to. The preset ``exec`` is in enforce_entry.bpf.c.
 *
 * hook                                     duty
 * lsm/bprm_check_security                  filelessExec: a program is started that lies in memory
 * lsm/mmap_file, file_mprotect             filelessExec: code is mapped that lies in memory; anonymousMapExec: memory becomes code
 * lsm/file_open                            protectProc, protectEnv: another process's files in a procfs
 * lsm/inode_follow_link, inode_readlink    protectProc: links of another process (root, cwd, exe, fd/N)
 *
 * In memory lies what has no name (memfd), what was removed while it was open or never had a name (O_TMPFILE), and every file of
 * tmpfs, ramfs and hugetlbfs but those of the file system that the host started from. A process's files are told by the
 * process that their inode belongs to, wherever the procfs is mounted and however they are reached.
 *
 * Not covered: code that was mapped before the rule; memory that the kernel makes executable unasked (a program that wants an
 * executable stack, heap under READ_IMPLIES_EXEC); code changed through /proc/PID/mem or by a tracer; memory of another process
 * by process_vm_readv and ptrace.
 */
#include <linux/bpf.h>

#include "include/presets.h"

#define PROT_WRITE 2
#define PROT_EXEC 4
#define MAP_SHARED 1 /* also a bit of MAP_SHARED_VALIDATE */
#define VM_EXEC 4
#define VM_SHARED 8
#define S_IFREG 0100000
#define S_IFCHR 0020000
#define DEV_ZERO (1 << 20 | 5)

/* include/uapi/linux/magic.h */
#define PROC_SUPER_MAGIC 0x9fa0
#define TMPFS_MAGIC 0x01021994
#define RAMFS_MAGIC 0x858458f6
#define HUGETLBFS_MAGIC 0x958458f6

#define PROC_DEPTH 8 /* /proc/PID/task/TID/net/stat/nf_conntrack, and one to spare */

#pragma clang attribute push(__attribute__((preserve_access_index)), apply_to = record)

struct proc_inode {
	struct pid *pid; /* NULL: not of a process */
	struct inode vfs_inode;
};

#pragma clang attribute pop

/* ---- Helpers ---------------------------------------------------------------------------------------------------------- */

/* Removed while it was open, or made without a name. */
static __always_inline int is_removed(const struct file *file)
{
	struct dentry *dentry = BPF_CORE_READ(file, f_path.dentry);

	if (BPF_CORE_READ(file, f_inode, i_nlink))
		return 0;
	/* Some network file systems know of no links at all; names that lead there are in the table. */
	return !BPF_CORE_READ(dentry, d_hash.pprev) || BPF_CORE_READ(dentry, d_parent) == dentry;
}

static __always_inline int is_memory(unsigned long magic)
{
	return magic == TMPFS_MAGIC || magic == RAMFS_MAGIC || magic == HUGETLBFS_MAGIC;
}

/* Verified for itself, as is the next one. */
__noinline int is_fileless(__u64 number)
{
	const struct subject_head *head = subject_head(active_copy());
	const struct file *file = (void *)number;
	struct super_block *sb = BPF_CORE_READ(file, f_inode, i_sb);

	if (!head || (BPF_CORE_READ(file, f_inode, i_mode) & S_IFMT) != S_IFREG)
		return 0;
	if (is_nameless((__u64)BPF_CORE_READ(file, f_path.mnt)) || is_removed(file))
		return 1;
	return is_memory(BPF_CORE_READ(sb, s_magic)) && (!head->root_dev || BPF_CORE_READ(sb, s_dev) != head->root_dev);
}

/* A file that is only a way to get memory, or none at all. */
__noinline int is_plain_memory(__u64 number)
{
	const struct file *file = (void *)number;
	struct inode *inode = BPF_CORE_READ(file, f_inode);

	if (!number)
		return 1;
	if ((BPF_CORE_READ(inode, i_mode) & S_IFMT) == S_IFCHR)
		return BPF_CORE_READ(inode, i_rdev) == DEV_ZERO;
	return is_nameless((__u64)BPF_CORE_READ(file, f_path.mnt));
}

static __always_inline struct pid *pid_of(struct inode *inode)
{
	struct proc_inode *proc = (void *)inode - bpf_core_field_offset(struct proc_inode, vfs_inode);

	return BPF_CORE_READ(proc, pid);
}

/* The process that a file in a procfs belongs to; of what is in /proc/PID/net that of the directory. */
static __always_inline struct pid *owner_of(struct dentry *dentry)
{
	struct dentry *parent;
	struct pid *pid;
	int depth;

	for (depth = 0; depth < PROC_DEPTH; depth++) {
		parent = BPF_CORE_READ(dentry, d_parent);
		if (parent == dentry)
			return NULL;
		pid = pid_of(BPF_CORE_READ(dentry, d_inode));
		if (pid)
			return pid;
		dentry = parent;
	}
	return NULL;
}

/* Whether ``pid`` is a process other than the current one. Of one that is gone there is nothing to read. */
static __always_inline int is_other(struct pid *pid)
{
	struct hlist_node *link = BPF_CORE_READ(pid, tasks[PIDTYPE_PID].first);
	struct task_struct *task = (void *)link - bpf_core_field_offset(struct task_struct, pid_links);

	return link && BPF_CORE_READ(task, tgid) != (int)(bpf_get_current_pid_tgid() >> 32);
}

static __always_inline int is_environ(struct dentry *dentry)
{
	char name[9] = {};

	if (BPF_CORE_READ(dentry, d_name.len) != 7 || bpf_probe_read_kernel(name, 8, BPF_CORE_READ(dentry, d_name.name)))
		return 0;
	return *(__u64 *)name == *(__u64 *)"environ";
}

/* The presets that a file or link of a procfs falls under; as many bits. Verified for itself. */
__noinline __u32 proc_presets(__u64 file, __u64 dentry)
{
	const struct subject_head *head = watching(BIT(PRESET_ENVIRON) | BIT(PRESET_PROC));
	struct file *opened = (void *)file;
	struct dentry *at = file ? BPF_CORE_READ(opened, f_path.dentry) : (void *)dentry;
	struct pid *pid = head ? owner_of(at) : NULL;

	if (!pid || !is_other(pid))
		return 0;
	return head->presets & (BIT(PRESET_PROC) | (is_environ(at) ? BIT(PRESET_ENVIRON) : 0));
}

static __always_inline int refuse_proc(__u32 operation, __u64 file, __u64 dentry)
{
	__u32 presets = proc_presets(file, dentry);

	if (presets & BIT(PRESET_PROC) && refuses_preset(PRESET_PROC, operation, file, dentry))
		return -EPERM;
	return presets & BIT(PRESET_ENVIRON) && refuses_preset(PRESET_ENVIRON, operation, file, dentry) ? -EPERM : 0;
}

/* Memory that is to become code. ``is_changed``: what is mapped there is not, or need not stay, what is in the file. */
static __always_inline int refuse_code(__u64 file, int is_new, int is_changed)
{
	const struct subject_head *head = watching(BIT(PRESET_FILELESS) | BIT(PRESET_ANONYMOUS));

	if (!head)
		return 0;
	if (head->presets & BIT(PRESET_FILELESS) && is_new && file && is_fileless(file) &&
	    refuses_preset(PRESET_FILELESS, OP_MAP, file, 0))
		return -EPERM;
	if (!(head->presets & BIT(PRESET_ANONYMOUS)) || !(is_changed || (is_new && is_plain_memory(file))))
		return 0;
	return refuses_preset(PRESET_ANONYMOUS, OP_MAP_ANONYMOUS, file, 0) ? -EPERM : 0;
}

/* ---- Hooks ------------------------------------------------------------------------------------------------------------ */

SEC("lsm/bprm_check_security") int BPF_PROG(guard_preset_exec, struct linux_binprm *bprm, int ret)
{
	__u64 file = (__u64)BPF_CORE_READ(bprm, file);

	if (ret || !watching(BIT(PRESET_FILELESS)) || !is_fileless(file))
		return ret;
	return refuses_preset(PRESET_FILELESS, OP_EXEC, file, 0) ? -EPERM : 0;
}

SEC("lsm/mmap_file")
int BPF_PROG(guard_preset_mmap, struct file *file, unsigned long reqprot, unsigned long prot, unsigned long flags, int ret)
{
	if (ret || !(prot & PROT_EXEC))
		return ret;
	return refuse_code(argument(ctx, 0), 1, prot & PROT_WRITE && !(flags & MAP_SHARED));
}

SEC("lsm/file_mprotect")
int BPF_PROG(guard_preset_mprotect, struct vm_area_struct *vma, unsigned long reqprot, unsigned long prot, int ret)
{
	__u64 file = BPF_CORE_READ(vma, vm_ops) ? (__u64)BPF_CORE_READ(vma, vm_file) : 0;
	__u64 written = (__u64)BPF_CORE_READ(vma, anon_vma);
	int is_new = !(vma->vm_flags & VM_EXEC), is_private = !(vma->vm_flags & VM_SHARED);

	/* Memory that was code before was decided then; a file that was need not have been changed yet. */
	if (ret || !(prot & PROT_EXEC) || (!is_new && (!(prot & PROT_WRITE) || !file)))
		return ret;
	return refuse_code(file, is_new, is_private && (written || prot & PROT_WRITE));
}

SEC("lsm/file_open") int BPF_PROG(guard_preset_open, struct file *file, int ret)
{
	if (ret || file->f_inode->i_sb->s_magic != PROC_SUPER_MAGIC)
		return ret;
	return refuse_proc(OP_OPEN, argument(ctx, 0), 0);
}

SEC("lsm/inode_follow_link") int BPF_PROG(guard_preset_follow, struct dentry *dentry, struct inode *inode, _Bool rcu, int ret)
{
	if (ret || inode->i_sb->s_magic != PROC_SUPER_MAGIC)
		return ret;
	return refuse_proc(OP_FOLLOW, 0, argument(ctx, 0));
}

SEC("lsm/inode_readlink") int BPF_PROG(guard_preset_readlink, struct dentry *dentry, int ret)
{
	if (ret || dentry->d_sb->s_magic != PROC_SUPER_MAGIC)
		return ret;
	return refuse_proc(OP_FOLLOW, 0, argument(ctx, 0));
}

char LICENSE[] SEC("license") = "GPL";

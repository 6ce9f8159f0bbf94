/* SPDX-License-Identifier: GPL-2.0-only */
/*
 * Kernel types, by hand: only the fields that our programs read. Offsets come from the running kernel's BTF when the object is
 * loaded (CO-RE), so order and padding here mean nothing and building needs no vmlinux.h.
 * A field that some kernels lack is read behind bpf_core_field_exists() where it is used.
 */
#ifndef GARRISON_KERNEL_TYPES_H
#define GARRISON_KERNEL_TYPES_H

#include <linux/types.h>

#pragma clang attribute push(__attribute__((preserve_access_index)), apply_to = record)

struct pid_namespace;
struct mnt_namespace {
	__u64 event; /* rises with each change of its mounts */
};

struct upid {
	int nr;
	struct pid_namespace *ns;
};

struct hlist_node {
	struct hlist_node *next;
};

struct hlist_head {
	struct hlist_node *first;
};

struct pid {
	unsigned int level;
	struct hlist_head tasks[4]; /* by enum pid_type */
	struct upid numbers[1]; /* level + 1 of them */
};

typedef struct {
	int counter;
} atomic_t;

typedef struct {
	__u32 val;
} kuid_t;

typedef unsigned short umode_t;
typedef unsigned int fmode_t;

struct cred {
	kuid_t euid;
	kuid_t fsuid;
};

struct qstr {
	union {
		struct {
			__u32 hash;
			__u32 len;
		};
	};
	const unsigned char *name;
};

struct super_block {
	__u32 s_dev;
	unsigned long s_flags;
	unsigned long s_magic;
};

struct inode {
	unsigned short i_mode;
	kuid_t i_uid;
	unsigned int i_nlink;
	__u32 i_rdev;
	struct super_block *i_sb;
	unsigned long i_ino;
};

struct hlist_bl_node {
	struct hlist_bl_node **pprev; /* NULL: not in the list */
};

struct dentry {
	struct hlist_bl_node d_hash; /* of names that lead somewhere */
	struct dentry *d_parent;
	struct qstr d_name;
	struct inode *d_inode;
	struct super_block *d_sb;
};

struct vfsmount {
	struct dentry *mnt_root;
	struct super_block *mnt_sb;
};

struct mount {
	struct mount *mnt_parent;
	struct dentry *mnt_mountpoint;
	struct vfsmount mnt;
	struct mnt_namespace *mnt_ns; /* NULL once unmounted, however lazily */
};

struct path {
	struct vfsmount *mnt;
	struct dentry *dentry;
};

struct file {
	unsigned int f_mode;
	unsigned int f_flags;
	struct path f_path;
	struct inode *f_inode;
};

struct bpf_map {
	__u32 id;
};

struct bpf_prog_aux {
	__u32 id;
};

struct bpf_prog {
	struct bpf_prog_aux *aux;
};

struct linux_binprm {
	struct file *file;
	unsigned long p;    /* where the arguments are in the new memory, one after the other */
	unsigned long exec; /* above them: the file name */
	int argc;
};

struct fs_struct {
	struct path pwd;
};

struct mm_struct {
	struct file *exe_file;
	unsigned long arg_start;
	unsigned long arg_end;
	unsigned long saved_auxv[24]; /* as many as are read; it has more */
};

struct vm_area_struct {
	struct file *vm_file;
	unsigned long vm_flags;
	const void *vm_ops; /* NULL: memory of its own, without a file */
	const void *anon_vma; /* set once a private page of it was written to */
};

struct tty_struct {
	char name[64];
};

enum pid_type {
	PIDTYPE_PID,
	PIDTYPE_TGID,
};

struct signal_struct {
	atomic_t live;
	struct pid *pids[4]; /* by enum pid_type */
	struct tty_struct *tty;
	unsigned int flags;
	int group_exit_code;
};

struct kernfs_node {
	__u64 id;
	const char *name;
};

struct cgroup_subsys_state {
	struct cgroup_subsys_state *parent;
};

struct cgroup_root {
	int hierarchy_id; /* 0: version 2 */
};

struct cgroup {
	struct cgroup_subsys_state self;
	int level; /* the root's is 0 */
	struct kernfs_node *kn;
	struct cgroup_root *root;
};

struct css_set {
	struct cgroup *dfl_cgrp;
};

struct task_struct {
	unsigned int flags;
	int tgid;
	struct mm_struct *mm;
	int exit_code;
	unsigned in_execve : 1;
	struct task_struct *real_parent;
	struct task_struct *group_leader;
	struct hlist_node pid_links[4]; /* by enum pid_type */
	const struct cred *real_cred;
	const struct cred *cred;
	char comm[16];
	struct fs_struct *fs;
	struct signal_struct *signal;
	kuid_t loginuid;	/* CONFIG_AUDIT */
	unsigned int sessionid; /* CONFIG_AUDIT */
	struct css_set *cgroups;
};

#pragma clang attribute pop

#define PF_KTHREAD 0x00200000	 /* include/linux/sched.h */
#define SIGNAL_GROUP_EXIT 0x00000004 /* include/linux/sched/signal.h */

#endif

// SPDX-License-Identifier: GPL-2.0-only
/*
 * Which files may be opened, made, changed and removed. Every way to change a file is a write of the path that a rule names.
 *
 * hook                                 duty
 * lsm/file_open                        a file is opened: for reading, writing, truncation or execution; by an overlay, in a layer
 * lsm/file_receive                     an open file is taken over from another process
 * lsm/path_unlink, path_rmdir          a name is taken away
 * lsm/path_rename                      one name becomes another; both count, and of a directory all that rules name in it
 * lsm/path_link                        a file gets another name; both count
 * lsm/path_{mknod,mkdir,symlink}       a name is made
 * lsm/path_truncate, file_truncate     a file is cut; file_truncate from kernel 6.2 on
 * lsm/path_{chmod,chown}               mode and owner
 * lsm/file_ioctl, file_ioctl_compat    attributes that a call on a descriptor sets; file_ioctl_compat from kernel 6.8 on
 * lsm/inode_{set,remove}xattr          extended attributes; there is no mount, so the path is told by its home alone
 *
 * Not covered: reading and writing through a file that was open before the rule (enforce_maps.bpf.c has mappings).
 */
#include <linux/bpf.h>

#include "include/enforce.h"
#include "include/layers.h"

#define FMODE_WRITE 2 /* include/linux/fs.h */
#define O_TRUNC 01000
/* include/uapi/linux/fs.h; and as 32-bit programs have them */
#define FS_IOC_SETFLAGS 0x40086602
#define FS_IOC32_SETFLAGS 0x40046602
#define FS_IOC_SETVERSION 0x40087602
#define FS_IOC32_SETVERSION 0x40047602
#define FS_IOC_FSSETXATTR 0x401c5820

static __always_inline __u64 mount_in(const struct path *directory)
{
	return (__u64)BPF_CORE_READ(directory, mnt);
}

static __always_inline __u32 open_condition(const struct file *file)
{
	return file->f_mode & FMODE_WRITE || file->f_flags & O_TRUNC ? CONDITION_WRITE : 0;
}

SEC("lsm/file_open") int BPF_PROG(guard_open, struct file *file, int ret)
{
	if (ret || is_in_layer(file))
		return ret;
	return enforce(ENTITY_FILE, OP_OPEN, &file->f_path, file->f_inode, open_condition(file));
}

/* A program of its own: both on one stack would be too much. */
SEC("lsm/file_open") int BPF_PROG(guard_layer, struct file *file, int ret)
{
	if (ret || !is_in_layer(file))
		return ret;
	return enforce_layer(file, open_condition(file));
}

SEC("lsm/file_receive") int BPF_PROG(guard_receive, struct file *file, int ret)
{
	__u32 condition = file->f_mode & FMODE_WRITE ? CONDITION_WRITE : 0;

	if (ret)
		return ret;
	return enforce(ENTITY_FILE, OP_RECEIVE, &file->f_path, file->f_inode, condition);
}

/* An argument of the hook as a plain number. */
static __always_inline __u64 argument(const __u64 *ctx, int number)
{
	__u64 value = 0;

	bpf_probe_read_kernel(&value, sizeof(value), ctx + number);
	return value;
}

SEC("lsm/path_unlink") int BPF_PROG(guard_unlink, const struct path *dir, struct dentry *dentry, int ret)
{
	return ret ?: enforce_name(OP_UNLINK, argument(ctx, 1), mount_in(dir), 0);
}

SEC("lsm/path_rmdir") int BPF_PROG(guard_rmdir, const struct path *dir, struct dentry *dentry, int ret)
{
	return ret ?: enforce_name(OP_UNLINK, argument(ctx, 1), mount_in(dir), 0);
}

/* An exchange comes here once for each direction on some kernels and once in all on others: both ends are looked at either way. */
SEC("lsm/path_rename")
int BPF_PROG(guard_rename, const struct path *old_dir, struct dentry *old_dentry, const struct path *new_dir,
	     struct dentry *new_dentry, unsigned int flags, int ret)
{
	ret = ret ?: enforce_name(OP_RENAME, argument(ctx, 1), mount_in(old_dir),
				  is_directory(old_dentry) ? REQUEST_BELOW : 0);
	return ret ?: enforce_name(OP_RENAME, argument(ctx, 3), mount_in(new_dir),
				   is_directory(new_dentry) ? REQUEST_BELOW : 0);
}

/* The kernel refuses links between mounts before it asks, so the old name is on the mount of the new one. */
SEC("lsm/path_link")
int BPF_PROG(guard_link, struct dentry *old_dentry, const struct path *new_dir, struct dentry *new_dentry, int ret)
{
	ret = ret ?: enforce_name(OP_LINK, argument(ctx, 0), mount_in(new_dir), 0);
	return ret ?: enforce_name(OP_LINK, argument(ctx, 2), mount_in(new_dir), 0);
}

SEC("lsm/path_mknod")
int BPF_PROG(guard_mknod, const struct path *dir, struct dentry *dentry, umode_t mode, unsigned int dev, int ret)
{
	return ret ?: enforce_name(OP_CREATE, argument(ctx, 1), mount_in(dir), 0);
}

SEC("lsm/path_mkdir") int BPF_PROG(guard_mkdir, const struct path *dir, struct dentry *dentry, umode_t mode, int ret)
{
	return ret ?: enforce_name(OP_CREATE, argument(ctx, 1), mount_in(dir), 0);
}

SEC("lsm/path_symlink")
int BPF_PROG(guard_symlink, const struct path *dir, struct dentry *dentry, const char *old_name, int ret)
{
	return ret ?: enforce_name(OP_CREATE, argument(ctx, 1), mount_in(dir), 0);
}

static __always_inline int enforce_path(__u32 operation, const struct path *path)
{
	return enforce_name(operation, (__u64)BPF_CORE_READ(path, dentry), mount_in(path), 0);
}

SEC("lsm/path_truncate") int BPF_PROG(guard_truncate, const struct path *path, int ret)
{
	return ret ?: enforce_path(OP_TRUNCATE, path);
}

SEC("?lsm/file_truncate") int BPF_PROG(guard_ftruncate, struct file *file, int ret)
{
	return ret ?: enforce(ENTITY_FILE, OP_TRUNCATE, &file->f_path, file->f_inode, CONDITION_WRITE);
}

SEC("lsm/path_chmod") int BPF_PROG(guard_chmod, const struct path *path, umode_t mode, int ret)
{
	return ret ?: enforce_path(OP_ATTRIBUTES, path);
}

SEC("lsm/path_chown") int BPF_PROG(guard_chown, const struct path *path, __u64 uid, __u64 gid, int ret)
{
	return ret ?: enforce_path(OP_ATTRIBUTES, path);
}

static __always_inline int enforce_ioctl(struct file *file, unsigned int cmd)
{
	switch (cmd) {
	case FS_IOC_SETFLAGS:
	case FS_IOC32_SETFLAGS:
	case FS_IOC_SETVERSION:
	case FS_IOC32_SETVERSION:
	case FS_IOC_FSSETXATTR:
		return enforce(ENTITY_FILE, OP_ATTRIBUTES, &file->f_path, file->f_inode, CONDITION_WRITE);
	default:
		return 0;
	}
}

SEC("lsm/file_ioctl") int BPF_PROG(guard_ioctl, struct file *file, unsigned int cmd, unsigned long arg, int ret)
{
	return ret ?: enforce_ioctl(file, cmd);
}

SEC("?lsm/file_ioctl_compat") int BPF_PROG(guard_ioctl32, struct file *file, unsigned int cmd, unsigned long arg, int ret)
{
	return ret ?: enforce_ioctl(file, cmd);
}

SEC("lsm/inode_setxattr") int BPF_PROG(guard_setxattr, void *idmap, struct dentry *dentry)
{
	return enforce_name(OP_ATTRIBUTES, argument(ctx, 1), 0, acts_as_another() ? REQUEST_RULES_ONLY : 0);
}

SEC("lsm/inode_removexattr") int BPF_PROG(guard_removexattr, void *idmap, struct dentry *dentry, const char *name, int ret)
{
	return ret ?: enforce_name(OP_ATTRIBUTES, argument(ctx, 1), 0, acts_as_another() ? REQUEST_RULES_ONLY : 0);
}

char LICENSE[] SEC("license") = "GPL";

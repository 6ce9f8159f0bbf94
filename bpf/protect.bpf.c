// SPDX-License-Identifier: GPL-2.0-only
/*
 * Protects enforcement itself: while an agent lives, nobody else takes the pins away, opens its maps and programs, or stops it.
 *
 * hook                                   duty
 * lsm/path_unlink, path_rmdir,           pins are taken away or moved
 *     path_rename
 * lsm/sb_umount, sb_mount                their file system is taken down, or covered
 * lsm/bpf_map, bpf_prog                  somebody gets a descriptor of ours, by pin or by number
 * lsm/ptrace_access_check, task_kill     the agent is traced, or gets a signal that ends or stops it against its will
 * tp_btf/sched_process_exit              the agent is gone: the next one must be able to take over
 *
 * Links of LSM programs cannot be detached or replaced through a descriptor, so the pins are all there is to protect of them.
 * Root wins in the end (reboot, kernel modules): what is promised is that it does not go unseen. Process 1 may do everything:
 * it is the service manager.
 */
#include <linux/bpf.h>

#include "include/enforce.h"

#define PTRACE_MODE_ATTACH 2
#define PIN_DEPTH 4 /* components from a pin up to the root of its file system */

enum tamper { TAMPER_OFF, TAMPER_AUDIT, TAMPER_BLOCK };

enum attempt { TRY_UNPIN, TRY_UNMOUNT, TRY_MAP, TRY_PROGRAM, TRY_TRACE, TRY_SIGNAL };

struct protection {
	struct inode_key pins; /* the directory */
	__u32 tamper;
	__u32 pad;
};

/* Key 0. Written by the agent. */
struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(max_entries, 1);
	__type(key, __u32);
	__type(value, struct protection);
} protection SEC(".maps");

/* Numbers of our maps (even: number * 2) and programs (odd: number * 2 + 1). Written by the agent. Full: the agent's error. */
struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__uint(max_entries, 4096);
	__type(key, __u64);
	__type(value, __u32);
} ours SEC(".maps");

struct tamper_event {
	struct actor actor;
	__u32 attempt;
	__u32 refused;
	__u32 detail; /* number of the map, program or signal */
	__s32 exe_used;
	__u64 suppressed; /* attempts of this kind so far that were only counted: event_rate.h */
	char exe[EVENT_NAMES + NAME_MAX_BYTES];
};

/* Whether the present task is to be looked at: it is neither the agent nor process 1, and an agent lives. */
static __always_inline const struct protection *protection_from(struct task_struct *task)
{
	__u32 zero = 0;
	const struct agent *self = bpf_map_lookup_elem(&agent, &zero);
	const struct protection *protected = bpf_map_lookup_elem(&protection, &zero);
	__u32 tgid = bpf_get_current_pid_tgid() >> 32;

	if (!self || !self->tgid || !protected || protected->tamper == TAMPER_OFF || tgid == self->tgid || tgid == 1 ||
	    BPF_CORE_READ(task, flags) & PF_KTHREAD)
		return NULL;
	return protected;
}

static __always_inline int is_agent(struct task_struct *task)
{
	__u32 zero = 0;
	const struct agent *self = bpf_map_lookup_elem(&agent, &zero);

	return self && self->tgid && BPF_CORE_READ(task, tgid) == self->tgid;
}

/* Tells of an attempt. Returns 0 or -EPERM. */
static __always_inline int refuse(struct task_struct *task, const struct protection *protected, __u32 attempt, __u32 detail)
{
	struct file *exe = BPF_CORE_READ(task, mm, exe_file);
	int block = protected->tamper == TAMPER_BLOCK;
	__u32 zero = 0;
	const struct agent *self = bpf_map_lookup_elem(&agent, &zero);
	__u64 suppressed = take_token(0, TAMPER_RULES + attempt, block ? VERDICT_BLOCK : VERDICT_AUDIT, 0);
	struct tamper_event *event;

	if (suppressed == OVER_RATE) {
		count(COUNT_SUPPRESSED);
		return block ? -EPERM : 0;
	}
	event = self ? bpf_ringbuf_reserve(&events, sizeof(*event), 0) : NULL;
	if (!event) {
		count_lost(0, TAMPER_RULES + attempt, 1);
		return block ? -EPERM : 0;
	}
	fill_actor(&event->actor, self, task);
	event->attempt = attempt;
	event->refused = block;
	event->detail = detail;
	event->suppressed = suppressed;
	event->exe_used = exe ? event_names(event->exe, &exe->f_path) : -1;
	bpf_ringbuf_submit(event, 0);
	return block ? -EPERM : 0;
}

static __always_inline int is_pin(const struct protection *protected, struct dentry *dentry)
{
	int depth;

	if (BPF_CORE_READ(dentry, d_sb, s_dev) != protected->pins.dev)
		return 0;
	for (depth = 0; depth < PIN_DEPTH; depth++) {
		if (BPF_CORE_READ(dentry, d_inode, i_ino) == protected->pins.ino)
			return 1;
		dentry = BPF_CORE_READ(dentry, d_parent);
	}
	return 0;
}

static __always_inline int guard_pin(struct dentry *dentry, __u32 attempt)
{
	struct task_struct *task = bpf_get_current_task_btf();
	const struct protection *protected = protection_from(task);

	return protected && is_pin(protected, dentry) ? refuse(task, protected, attempt, 0) : 0;
}

SEC("lsm/path_unlink") int BPF_PROG(guard_pin_unlink, const struct path *dir, struct dentry *dentry, int ret)
{
	return ret ?: guard_pin(dentry, TRY_UNPIN);
}

SEC("lsm/path_rmdir") int BPF_PROG(guard_pin_rmdir, const struct path *dir, struct dentry *dentry, int ret)
{
	return ret ?: guard_pin(dentry, TRY_UNPIN);
}

SEC("lsm/path_rename")
int BPF_PROG(guard_pin_rename, const struct path *old_dir, struct dentry *old_dentry, const struct path *new_dir,
	     struct dentry *new_dentry, unsigned int flags, int ret)
{
	ret = ret ?: guard_pin(old_dentry, TRY_UNPIN);
	return ret ?: guard_pin(new_dentry, TRY_UNPIN);
}

static __always_inline int guard_mount(struct super_block *sb)
{
	struct task_struct *task = bpf_get_current_task_btf();
	const struct protection *protected = protection_from(task);

	return protected && BPF_CORE_READ(sb, s_dev) == protected->pins.dev ? refuse(task, protected, TRY_UNMOUNT, 0) : 0;
}

SEC("lsm/sb_umount") int BPF_PROG(guard_pin_umount, struct vfsmount *mnt, int flags, int ret)
{
	return ret ?: guard_mount(mnt->mnt_sb);
}

SEC("lsm/sb_mount")
int BPF_PROG(guard_pin_mount, const char *dev_name, const struct path *path, const char *type, unsigned long flags, void *data,
	     int ret)
{
	return ret ?: guard_mount(BPF_CORE_READ(path, dentry, d_sb));
}

static __always_inline int guard_ours(__u64 key, __u32 attempt)
{
	struct task_struct *task = bpf_get_current_task_btf();
	const struct protection *protected = protection_from(task);

	return protected && bpf_map_lookup_elem(&ours, &key) ? refuse(task, protected, attempt, key >> 1) : 0;
}

SEC("lsm/bpf_map") int BPF_PROG(guard_map, struct bpf_map *map, fmode_t fmode, int ret)
{
	return ret ?: guard_ours((__u64)map->id << 1, TRY_MAP);
}

SEC("lsm/bpf_prog") int BPF_PROG(guard_program, struct bpf_prog *prog, int ret)
{
	return ret ?: guard_ours((__u64)BPF_CORE_READ(prog, aux, id) << 1 | 1, TRY_PROGRAM);
}

static __always_inline int guard_agent(struct task_struct *whom, __u32 attempt, __u32 detail)
{
	struct task_struct *task = bpf_get_current_task_btf();
	const struct protection *protected = is_agent(whom) ? protection_from(task) : NULL;

	return protected ? refuse(task, protected, attempt, detail) : 0;
}

SEC("lsm/ptrace_access_check") int BPF_PROG(guard_trace, struct task_struct *child, unsigned int mode, int ret)
{
	return ret || !(mode & PTRACE_MODE_ATTACH) ? ret : guard_agent(child, TRY_TRACE, 0);
}

/* Signals that are asked for as a service manager or terminal asks, or that do nothing by default: the agent answers them. */
#define BIT(n) (1ULL << (n))
#define ASKED (BIT(0) | BIT(1) | BIT(2) | BIT(15) | BIT(17) | BIT(18) | BIT(23) | BIT(28))

SEC("lsm/task_kill")
int BPF_PROG(guard_signal, struct task_struct *whom, void *info, int sig, const struct cred *cred, int ret)
{
	if (ret || (sig >= 0 && sig < 64 && ASKED >> sig & 1))
		return ret;
	return guard_agent(whom, TRY_SIGNAL, sig);
}

SEC("tp_btf/sched_process_exit") int BPF_PROG(watch_exit, struct task_struct *task)
{
	__u32 zero = 0;
	struct agent *self = bpf_map_lookup_elem(&agent, &zero);

	if (self && is_agent(task) && !BPF_CORE_READ(task, signal, live.counter))
		self->tgid = 0;
	return 0;
}

char LICENSE[] SEC("license") = "GPL";

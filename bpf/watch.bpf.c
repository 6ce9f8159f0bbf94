// SPDX-License-Identifier: GPL-2.0-only
/*
 * What makes cached verdicts and tables untrue. Decides nothing.
 *
 * hook                       duty
 * fexit/d_move, d_exchange   a directory got another path, and with it all that is in it: the epoch rises. After the fact, so that
 *                            nothing is remembered of before; a file's own name is part of its cache entry
 * lsm/inode_free_security    a file is gone for good: its number may be another's soon, so it names nothing any more
 * tp_btf/cgroup_mkdir        a cgroup was made: told to user space, which finds out whether it is a container's
 *
 * Mounts need no hook: cache entries hold the mount namespace's own count of changes (places.h).
 * Not seen: directories that a network file system finds moved on its server.
 */
#include <linux/bpf.h>

#include "include/enforce.h"

static __always_inline void moved(struct dentry *dentry)
{
	__u32 zero = 0, *value;

	if (!is_directory(dentry))
		return;
	value = bpf_map_lookup_elem(&epoch, &zero);
	if (value)
		__sync_fetch_and_add(value, 1);
}

SEC("fexit/d_move") int BPF_PROG(watch_move, struct dentry *dentry, struct dentry *target)
{
	moved(dentry);
	return 0;
}

SEC("fexit/d_exchange") int BPF_PROG(watch_exchange, struct dentry *one, struct dentry *other)
{
	moved(one);
	moved(other);
	return 0;
}

static __always_inline void forget_inode(void *outer, __u32 copy, const struct inode_key *key)
{
	void *table = bpf_map_lookup_elem(outer, &copy);

	if (table)
		bpf_map_delete_elem(table, key);
}

SEC("lsm/inode_free_security") int BPF_PROG(watch_free, struct inode *inode)
{
	struct inode_key key;

	if (BPF_CORE_READ(inode, i_nlink))
		return 0; /* only out of memory */
	key = inode_key_of(inode);
	forget_inode(&inodes, 0, &key);
	forget_inode(&inodes, 1, &key);
	forget_inode(&anchors, 0, &key);
	forget_inode(&anchors, 1, &key);
	return 0;
}

/* Cgroups that were made. Full, as when no agent reads it: counted as CGROUPS_MISSED, and the next agent looks for itself. */
struct {
	__uint(type, BPF_MAP_TYPE_RINGBUF);
	__uint(max_entries, 256 << 10);
} cgroups_made SEC(".maps");

SEC("tp_btf/cgroup_mkdir") int BPF_PROG(watch_cgroup, struct cgroup *made, const char *path)
{
	__u32 key = CGROUPS_MISSED, *missed;
	struct cgroup_made *told;

	if (BPF_CORE_READ(made, root, hierarchy_id))
		return 0;
	told = bpf_ringbuf_reserve(&cgroups_made, sizeof(*told), 0);
	if (!told) {
		missed = bpf_map_lookup_elem(&workload_figures, &key);
		if (missed)
			__sync_fetch_and_add(missed, 1);
		return 0;
	}
	told->id = BPF_CORE_READ(made, kn, id);
	if (bpf_probe_read_kernel_str(told->path, sizeof(told->path), path) < 0)
		told->path[0] = 0;
	bpf_ringbuf_submit(told, 0);
	return 0;
}

char LICENSE[] SEC("license") = "GPL";

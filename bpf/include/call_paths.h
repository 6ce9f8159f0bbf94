/* SPDX-License-Identifier: GPL-2.0-only */
/* Paths that a system call is given: whether one may be named by a rule, and what is known of them for the record. */
#ifndef GARRISON_CALL_PATHS_H
#define GARRISON_CALL_PATHS_H

#include "path_walk.h"
#include "syscalls.h"

#define AT_FDCWD (-100)

#pragma clang attribute push(__attribute__((preserve_access_index)), apply_to = record)

struct fdtable {
	unsigned int max_fds;
	struct file **fd;
};

struct files_struct {
	struct fdtable *fdt;
};

struct task_struct___files {
	struct files_struct *files;
};

#pragma clang attribute pop

/* Prefixes of paths that pass the last question: a directory with its slash, a file with its NUL. Written by user space. */
struct {
	__uint(type, BPF_MAP_TYPE_LPM_TRIE);
	__uint(max_entries, 8192); /* of two generations, for the time between them */
	__uint(map_flags, BPF_F_NO_PREALLOC);
	__type(key, struct target_key);
	__type(value, __u8);
} targets SEC(".maps");

struct {
	__uint(type, BPF_MAP_TYPE_PERCPU_ARRAY);
	__uint(max_entries, 1);
	__type(key, __u32);
	__type(value, struct target_key);
} scratch_target SEC(".maps");

DEFINE_WALK_NAMES(call_names, NAMES_BYTES)

/* Whether the path at ``address`` may be one of ``targets``. What is not absolute and plain may be anything. */
static __noinline int may_be_named(__u64 address)
{
	__u32 zero = 0;
	struct target_key *key = bpf_map_lookup_elem(&scratch_target, &zero);
	long n;
	int i;

	if (!key)
		return 1;
	n = bpf_probe_read_user_str(key->path, TARGET_BYTES, (void *)address);
	if (n <= 1 || n >= TARGET_BYTES || key->path[0] != '/')
		return 1;
	for (i = 0; i < TARGET_BYTES - 1; i++) {
		if (!key->path[i])
			break;
		if (key->path[i] == '/' && (key->path[i + 1] == '/' || key->path[i + 1] == '.' || !key->path[i + 1]))
			return 1;
	}
	key->bits = n * 8;
	return bpf_map_lookup_elem(&targets, key) != NULL;
}

static __always_inline int any_may_be_named(const struct call_shape *shape, const __u64 *args)
{
	int i;

#pragma unroll
	for (i = 0; i < 2; i++) {
		if (i >= shape->paths)
			break;
		if (shape->path[i].text < 0 || may_be_named(args[shape->path[i].text & 7]))
			return 1;
	}
	return 0;
}

/* The directory that a path begins at: the working directory or what a descriptor stands for. */
static __always_inline int base_names(char *out, struct task_struct *task, const __u64 *args, int fd_at)
{
	struct task_struct___files *holder = (void *)task;
	struct fs_struct *fs = BPF_CORE_READ(task, fs);
	struct file *file = NULL, **table;
	int fd = AT_FDCWD;

	if (fd_at >= 0)
		fd = args[fd_at & 7];
	if (fd == AT_FDCWD)
		return fs ? call_names(out, &fs->pwd) : -1;
	if (fd < 0 || fd >= BPF_CORE_READ(holder, files, fdt, max_fds))
		return -1;
	table = BPF_CORE_READ(holder, files, fdt, fd);
	if (bpf_probe_read_kernel(&file, sizeof(file), table + fd) || !file)
		return -1;
	return call_names(out, &file->f_path);
}

static __always_inline void fill_path(struct call_path *path, struct task_struct *task, const __u64 *args, int fd_at, int text_at)
{
	path->base_used = -1;
	path->text_used = 0;
	path->address = 0;
	if (text_at >= 0) {
		path->address = args[text_at & 7];
		path->text_used = bpf_probe_read_user_str(path->text, TEXT_BYTES, (void *)path->address);
	}
	if (path->text_used <= 0 || path->text[0] != '/')
		path->base_used = base_names(path->base, task, args, fd_at);
}

/* Memory that was not there yet when the call began is there when it returns. */
static __always_inline void fill_late(struct call_path *path)
{
	if (path->address && path->text_used < 0)
		path->text_used = bpf_probe_read_user_str(path->text, TEXT_BYTES, (void *)path->address);
}

#endif

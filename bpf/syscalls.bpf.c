// SPDX-License-Identifier: GPL-2.0-only
/*
 * System calls that rules name, with who made them, on which paths, and what came of it. Observes; refuses nothing.
 *
 * hook              duty
 * raw_tp/sys_enter  a call begins: whether a rule may speak of it, and if so all that is known of it then
 * raw_tp/sys_exit   it returned: the result is added and the record handed over
 *
 * Not covered: 32-bit calls (counted), calls that seccomp refused (no tracepoint), what io_uring does without a call, processes
 * outside the agent's PID namespace, the agent itself (its reports would report themselves).
 *
 * This only filters, never too much: user space decides what rules say. Three questions, the cheapest first: does a rule name the
 * call, does one name it for this program, and for calls that programs make by the thousand, may the path be one that is named.
 * Arguments are read from the process's memory when it calls: another thread of it may show the kernel something else.
 */
#include <linux/bpf.h>

#include "include/path_hash.h"
#include "include/syscalls.h"

/* ---- Maps ------------------------------------------------------------------------------------------------------------- */

/* Key 0. Written by user space for each generation. All zero: nothing is looked at. */
struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(max_entries, 1);
	__type(key, __u32);
	__type(value, struct wanted);
} wanted SEC(".maps");

/* Shapes by number. Written by user space once, before attaching. */
struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(max_entries, CALLS);
	__type(key, __u32);
	__type(value, struct call_shape);
} shapes SEC(".maps");

struct rows {
	__uint(type, BPF_MAP_TYPE_HASH);
	__uint(max_entries, 1);
	__uint(map_flags, BPF_F_NO_PREALLOC);
	__uint(key_size, sizeof(struct row_key)); /* sizes: clang 14 leaves the types of inner maps out of BTF */
	__uint(value_size, sizeof(struct row));
};

/* Key 0: the rows of the generation that holds. Written by user space, once per generation. */
struct {
	__uint(type, BPF_MAP_TYPE_ARRAY_OF_MAPS);
	__uint(max_entries, 1);
	__type(key, __u32);
	__array(values, struct rows);
} generation SEC(".maps");

/* Prefixes of paths that pass the third question: a directory with its slash, a file with its NUL. Written by user space. */
struct {
	__uint(type, BPF_MAP_TYPE_LPM_TRIE);
	__uint(max_entries, 8192); /* of two generations, for the time between them */
	__uint(map_flags, BPF_F_NO_PREALLOC);
	__type(key, struct target_key);
	__type(value, __u8);
} targets SEC(".maps");

/* Thread id -> the call it is in. Written and deleted here. Full: the record is handed over without a result. */
struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__uint(max_entries, 1024); /* 4 MB */
	__type(key, __u32);
	__type(value, struct call_record);
} pending SEC(".maps");

/* Where a record is put together. Tracepoint programs run with preemption off. */
struct {
	__uint(type, BPF_MAP_TYPE_PERCPU_ARRAY);
	__uint(max_entries, 1);
	__type(key, __u32);
	__type(value, struct call_record);
} scratch SEC(".maps");

struct {
	__uint(type, BPF_MAP_TYPE_PERCPU_ARRAY);
	__uint(max_entries, 1);
	__type(key, __u32);
	__type(value, struct target_key);
} scratch_target SEC(".maps");

/* Records. Full: the record is lost and counted, in ``counters`` and in ``drops``. */
struct {
	__uint(type, BPF_MAP_TYPE_RINGBUF);
	__uint(max_entries, 4 << 20); /* about 1,600 calls with one path */
} records SEC(".maps");

/* Lost records by generation, row and call. Written here, read by user space. Full: COUNT_UNNAMED. */
struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__uint(max_entries, 4096);
	__type(key, struct drop_key);
	__type(value, __u64);
} drops SEC(".maps");

/* Figures by enum counter. Written here, read by user space. */
struct {
	__uint(type, BPF_MAP_TYPE_PERCPU_ARRAY);
	__uint(max_entries, COUNTERS);
	__type(key, __u32);
	__type(value, __u64);
} counters SEC(".maps");

DEFINE_WALK_NAMES(call_names, NAMES_BYTES)

/* ---- Helpers ---------------------------------------------------------------------------------------------------------- */

static __always_inline void count(__u32 which)
{
	__u64 *figure = bpf_map_lookup_elem(&counters, &which);

	if (figure)
		__sync_fetch_and_add(figure, 1);
}

static __always_inline int has(const __u64 *bits, __u32 call)
{
	return bits[call / 64 % BITS] >> (call % 64) & 1;
}

/* Whether the current task is in a 32-bit call, whose numbers are others. x86: by call; arm64: by program. */
static __always_inline int is_compat(__u64 call)
{
	struct task_struct___x86 *x86 = (void *)bpf_get_current_task_btf();
	struct task_struct___arm64 *arm64 = (void *)x86;

	if (bpf_core_field_exists(x86->thread_info.status))
		return (x86->thread_info.status & TS_COMPAT) || (call & ~0x3ffUL) == X32_SYSCALL_BIT;
	return arm64->thread_info.flags >> TIF_32BIT & 1;
}

static __always_inline __u64 call_of(const void *regs)
{
	const struct pt_regs___x86 *x86 = regs;
	const struct pt_regs___arm64 *arm64 = regs;

	if (bpf_core_field_exists(x86->orig_ax))
		return BPF_CORE_READ(x86, orig_ax);
	return BPF_CORE_READ(arm64, syscallno);
}

static __always_inline void read_args(__u64 *args, const void *regs)
{
	const struct pt_regs___x86 *x86 = regs;
	const struct pt_regs___arm64 *arm64 = regs;

	if (bpf_core_field_exists(x86->orig_ax)) {
		args[0] = BPF_CORE_READ(x86, di);
		args[1] = BPF_CORE_READ(x86, si);
		args[2] = BPF_CORE_READ(x86, dx);
		args[3] = BPF_CORE_READ(x86, r10);
		args[4] = BPF_CORE_READ(x86, r8);
		args[5] = BPF_CORE_READ(x86, r9);
	} else {
		bpf_core_read(args, 6 * sizeof(*args), &arm64->regs);
	}
}

static __always_inline void hand_over(struct call_record *record)
{
	struct drop_key key = {.generation = record->generation, .row = record->row, .call = record->call};
	__u64 zero = 0, *figure;
	long lost;

	if (record->paths == 0)
		lost = bpf_ringbuf_output(&records, record, __builtin_offsetof(struct call_record, path), 0);
	else if (record->paths == 1)
		lost = bpf_ringbuf_output(&records, record, __builtin_offsetof(struct call_record, path[1]), 0);
	else
		lost = bpf_ringbuf_output(&records, record, sizeof(*record), 0);
	count(COUNT_SEEN);
	if (!lost)
		return;
	count(COUNT_DROPPED);
	bpf_map_update_elem(&drops, &key, &zero, BPF_NOEXIST);
	figure = bpf_map_lookup_elem(&drops, &key);
	if (figure)
		__sync_fetch_and_add(figure, 1);
	else
		count(COUNT_UNNAMED);
}

/* ---- Programs --------------------------------------------------------------------------------------------------------- */

static __always_inline struct row *find_row(void *rows, __u64 hash, __u32 kind)
{
	struct row_key key = {.hash = hash, .kind = kind};

	return bpf_map_lookup_elem(rows, &key);
}

/* A second walk up, which looks for the deepest directory that has a row. */
struct directory_walk {
	struct walk at;
	void *rows;
	__u64 hash; /* of what is left of the path */
	__u32 kind;
	__u32 pad;
	struct row_key found; /* zero, which is ROW_OTHER, as long as there is none */
};

static long directory_step(__u32 index, void *context)
{
	struct directory_walk *walk = context;
	__u64 component;

	if (!hash_step(&walk->at, &component))
		return 1;
	if (!component)
		return 0;
	walk->hash = (walk->hash - component) * hash_inverse;
	if (find_row(walk->rows, walk->hash, walk->kind)) {
		walk->found.hash = walk->hash;
		walk->found.kind = walk->kind;
		return 1;
	}
	walk->kind = ROW_BELOW;
	return 0;
}

/* The row of the running program: its own, else of its deepest directory, else that of programs which no rule names. */
static __always_inline struct row *program_row(void *rows, struct task_struct *task, __u32 directories)
{
	struct file *exe = BPF_CORE_READ(task, mm, exe_file);
	struct directory_walk walk = {.rows = rows, .kind = ROW_DIRECT};
	struct row *row;

	if (!exe || !hash_path(&exe->f_path, &walk.hash)) {
		count(COUNT_UNRESOLVED);
		return find_row(rows, 0, ROW_UNKNOWN);
	}
	row = find_row(rows, walk.hash, ROW_PROGRAM);
	if (row)
		return row;
	if (directories) {
		walk_start(&walk.at, &exe->f_path);
		FORGET(walk.at);
		FORGET(walk.hash);
		FORGET(walk.kind);
		FORGET(walk.found);
		bpf_loop(WALK_STEPS, directory_step, &walk, 0);
		/* Something is left over: a directory was renamed between the two walks. */
		if (!walk.found.kind && (walk.hash || walk.at.state != WALK_ROOT)) {
			count(COUNT_UNRESOLVED);
			return find_row(rows, 0, ROW_UNKNOWN);
		}
	}
	return bpf_map_lookup_elem(rows, &walk.found);
}

/* ---- Paths ------------------------------------------------------------------------------------------------------------ */

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

/* ---- Hooks ------------------------------------------------------------------------------------------------------------ */

static __noinline int enter(const void *regs, __u32 call, int sourced)
{
	struct task_struct *task = (void *)bpf_get_current_task();
	__u64 id = bpf_get_current_pid_tgid();
	__u32 zero = 0, tid = id, alone;
	struct agent *self = bpf_map_lookup_elem(&agent, &zero);
	void *rows = bpf_map_lookup_elem(&generation, &zero);
	struct call_record *record = bpf_map_lookup_elem(&scratch, &zero), *left;
	struct call_shape *shape = bpf_map_lookup_elem(&shapes, &call);
	struct row *row, *other;
	struct file *exe;

	if (!self || !rows || !record || !shape || id >> 32 == self->tgid || !agent_pid(self, task))
		return 0;
	other = find_row(rows, 0, ROW_OTHER);
	if (!other)
		return 0;
	row = sourced ? program_row(rows, task, other->directories) : other;
	if (!row)
		row = other;
	read_args(record->args, regs);
	if (!has(row->calls, call) && (!has(row->paths, call) || !any_may_be_named(shape, record->args)))
		return 0;

	fill_actor(&record->actor, self, task);
	record->result = 0;
	record->returned = 0;
	record->generation = row->generation;
	record->row = row->index;
	record->call = call;
	record->paths = shape->paths;
	exe = BPF_CORE_READ(task, mm, exe_file);
	record->exe_used = exe ? call_names(record->exe, &exe->f_path) : -1;
	if (shape->paths > 0)
		fill_path(&record->path[0], task, record->args, shape->path[0].fd, shape->path[0].text);
	if (shape->paths > 1)
		fill_path(&record->path[1], task, record->args, shape->path[1].fd, shape->path[1].text);

	left = bpf_map_lookup_elem(&pending, &tid);
	if (left)
		hand_over(left); /* it never came back */
	alone = shape->flags & CALL_NO_RETURN || (shape->flags & CALL_EXEC && tid != id >> 32);
	if (!alone && !bpf_map_update_elem(&pending, &tid, record, BPF_ANY))
		return 0;
	if (left)
		bpf_map_delete_elem(&pending, &tid);
	hand_over(record);
	return 0;
}

static __noinline int leave(__s64 result)
{
	__u32 tid = bpf_get_current_pid_tgid();
	struct call_record *record = bpf_map_lookup_elem(&pending, &tid);

	if (!record)
		return 0;
	record->result = result;
	record->returned = 1;
	if (record->paths > 0)
		fill_late(&record->path[0]);
	if (record->paths > 1)
		fill_late(&record->path[1]);
	hand_over(record);
	bpf_map_delete_elem(&pending, &tid);
	return 0;
}

SEC("raw_tp/sys_enter") int call_enter(struct bpf_raw_tracepoint_args *ctx)
{
	__u64 call = ctx->args[1];
	__u32 zero = 0;
	struct wanted *held = bpf_map_lookup_elem(&wanted, &zero);

	if (!held)
		return 0;
	if (is_compat(call)) {
		count(COUNT_COMPAT);
		return 0;
	}
	if (call >= CALLS || !has(held->enter, call))
		return 0;
	return enter((void *)ctx->args[0], call, has(held->sourced, call));
}

SEC("raw_tp/sys_exit") int call_leave(struct bpf_raw_tracepoint_args *ctx)
{
	__u64 call = call_of((void *)ctx->args[0]);
	__u32 zero = 0;
	struct wanted *held = bpf_map_lookup_elem(&wanted, &zero);

	/* An exec of a 32-bit program begins as a 64-bit call and ends as a 32-bit one. */
	if (!held || (!is_compat(call) && (call >= CALLS || !has(held->leave, call))))
		return 0;
	return leave(ctx->args[1]);
}

char LICENSE[] SEC("license") = "GPL";

// SPDX-License-Identifier: GPL-2.0-only
/*
 * System calls that rules name, with who made them, on which paths, and what came of it. Observes; refuses nothing.
 *
 * hook                       duty
 * raw_tp/sys_enter           a call begins: whether a rule may speak of it, and if so all that is known of it then
 * raw_tp/sys_exit            it returned: the result is added and the record handed over
 * tp_btf/sched_process_fork  the child is where its parent was, and was
 *
 * Not covered: 32-bit calls (counted), calls that seccomp refused (no tracepoint), what io_uring does without a call, processes
 * outside the agent's PID namespace, the agent itself (its reports would report themselves).
 *
 * This only filters, never too much: user space decides what rules say. Four questions, the cheapest first: does a rule name the
 * call, if rules for workloads do, which ones hold here, does one name it for this program, and for calls that programs make by the
 * thousand, may the path be one that is named.
 * Arguments are read from the process's memory when it calls: another thread of it may show the kernel something else.
 */
#include <linux/bpf.h>

#include "include/call_paths.h"
#include "include/call_registers.h"
#include "include/syscalls.h"
#include "include/counters.h"
#include "include/workloads.h"

#include <bpf/bpf_tracing.h>

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

/*
 * Key 0: the rows of the generation that holds. Written by user space, once per generation, after the copy of ``cgroups`` whose
 * number is the generation's last bit.
 */
struct {
	__uint(type, BPF_MAP_TYPE_ARRAY_OF_MAPS);
	__uint(max_entries, 1);
	__type(key, __u32);
	__array(values, struct rows);
} generation SEC(".maps");

/*
 * Task -> its workload. Written by the task itself, before it runs by its parent; goes with the task. No memory: it is found anew for
 * each call, and who has left a container is not known.
 */
struct {
	__uint(type, BPF_MAP_TYPE_TASK_STORAGE);
	__uint(map_flags, BPF_F_NO_PREALLOC);
	__type(key, int);
	__type(value, struct membership);
} members SEC(".maps");

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

/* ---- Helpers ---------------------------------------------------------------------------------------------------------- */

static __always_inline int has(const __u64 *bits, __u32 call)
{
	return bits[call / 64 % BITS] >> (call % 64) & 1;
}

static __always_inline void count_drop(__u32 generation_number, __u32 row, __u32 call)
{
	struct drop_key key = {.generation = generation_number, .row = row, .call = call};
	__u64 zero = 0, *figure;

	bpf_map_update_elem(&drops, &key, &zero, BPF_NOEXIST);
	figure = bpf_map_lookup_elem(&drops, &key);
	if (figure)
		__sync_fetch_and_add(figure, 1);
	else
		count(COUNT_UNNAMED);
}

static __noinline int hand_over(struct call_record *record)
{
	long lost;
	int i;

	if (record->paths == 0)
		lost = bpf_ringbuf_output(&records, record, __builtin_offsetof(struct call_record, path), 0);
	else if (record->paths == 1)
		lost = bpf_ringbuf_output(&records, record, __builtin_offsetof(struct call_record, path[1]), 0);
	else
		lost = bpf_ringbuf_output(&records, record, sizeof(*record), 0);
	count(COUNT_SEEN);
	if (!lost)
		return 0;
	count(COUNT_DROPPED);
#pragma unroll
	for (i = 0; i < ROWS; i++)
		if (record->row[i] != NO_ROW)
			count_drop(record->generation, record->row[i], record->call);
	return 0;
}

/* ---- Who calls -------------------------------------------------------------------------------------------------------- */

/* A call, and what has been found out about its caller. */
struct question {
	void *rows;
	struct task_struct *task;
	const struct call_shape *shape;
	struct program program;
	__u32 call;
	__u8 sourced; /* some rule names the call and a source */
	__u8 sought;  /* the program was */
	__u16 pad;
};

/* By which row rules of a profile may speak of the call; NO_ROW if they do not. */
static __noinline __u32 asking_row(struct question *question, const __u64 *args, __u32 profile)
{
	struct row *other = find_row(question->rows, 0, ROW_OTHER, profile), *row = other;

	if (!other)
		return NO_ROW;
	if (question->sourced && (other->flags & ROW_NEEDS_PATH)) {
		if (!question->sought)
			find_program(&question->program, question->task);
		question->sought = 1;
		row = program_row(question->rows, &question->program, other->flags, profile) ?: other;
	}
	if (!has(row->calls, question->call) &&
	    (!has(row->paths, question->call) || !any_may_be_named(question->shape, args)))
		return NO_ROW;
	return row->index;
}

/* Which workload the caller is in, and which container it was in. */
static __noinline int find_place(struct call_record *record)
{
	struct task_struct *task = bpf_get_current_task_btf();
	struct membership fresh = {}, *kept = bpf_task_storage_get(&members, task, 0, BPF_LOCAL_STORAGE_GET_F_CREATE);

	if (!kept)
		kept = &fresh;
	refresh_membership(kept, record->generation & 1, record->generation);
	record->profile = kept->profile;
	record->also = kept->also;
	return 0;
}

/* ---- Hooks ------------------------------------------------------------------------------------------------------------ */

static __noinline int enter(const void *regs, __u32 call, int sourced, int placed)
{
	struct question question = {.task = (void *)bpf_get_current_task(), .call = call, .sourced = sourced};
	__u64 id = bpf_get_current_pid_tgid();
	__u32 zero = 0, tid = id, alone;
	struct agent *self = bpf_map_lookup_elem(&agent, &zero);
	struct call_record *record = bpf_map_lookup_elem(&scratch, &zero), *left;
	struct call_shape *shape = bpf_map_lookup_elem(&shapes, &call);
	struct task_struct *task = question.task;
	struct row *other;
	struct file *exe;

	question.rows = bpf_map_lookup_elem(&generation, &zero);
	question.shape = shape;
	if (!self || !question.rows || !record || !shape || id >> 32 == self->tgid || !agent_pid(self, task))
		return 0;
	other = find_row(question.rows, 0, ROW_OTHER, HOST_PROFILE);
	if (!other)
		return 0;
	record->generation = other->generation;
	record->row[1] = record->row[2] = NO_ROW;
	record->profile = record->also = HOST_PROFILE;
	read_args(record->args, regs);
	record->row[0] = asking_row(&question, record->args, HOST_PROFILE);
	if (placed)
		find_place(record);
	if (record->profile != HOST_PROFILE)
		record->row[1] = asking_row(&question, record->args, record->profile);
	if (record->also != HOST_PROFILE)
		record->row[2] = asking_row(&question, record->args, record->also);
	if (question.sought && !question.program.resolved)
		count(COUNT_UNRESOLVED);
	if (record->row[0] == NO_ROW && record->row[1] == NO_ROW && record->row[2] == NO_ROW)
		return 0;

	fill_actor(&record->actor, self, task);
	record->result = 0;
	record->returned = 0;
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
	return enter((void *)ctx->args[0], call, has(held->sourced, call), has(held->placed, call));
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

SEC("tp_btf/sched_process_fork") int BPF_PROG(call_fork, struct task_struct *parent, struct task_struct *child)
{
	struct membership *before = bpf_task_storage_get(&members, parent, 0, 0), *kept;

	if (!before || !before->container)
		return 0;
	kept = bpf_task_storage_get(&members, child, 0, BPF_LOCAL_STORAGE_GET_F_CREATE);
	if (kept)
		*kept = *before;
	return 0;
}

char LICENSE[] SEC("license") = "GPL";

// SPDX-License-Identifier: GPL-2.0-only
/*
 * Commands that start and end, seen by all processes of the agent's PID namespace. Observes; refuses nothing.
 *
 * hook                       duty
 * raw_tp/sched_process_exec  a program was started: who, what, with which arguments, where
 * raw_tp/sched_process_exit  the last thread of such a process ended: exit code, time
 *
 * Not covered: processes that only fork; processes outside the agent's PID namespace.
 */
#include <linux/bpf.h>

#include "include/exec_feed.h"
#include "include/counters.h"
#include "include/path_walk.h"

/* ---- Maps ------------------------------------------------------------------------------------------------------------- */

/* Records. Full: the record is lost and counted. */
struct {
	__uint(type, BPF_MAP_TYPE_RINGBUF);
	__uint(max_entries, 4 << 20); /* about 2,900 commands */
} records SEC(".maps");

/* Process id in the first PID namespace -> CLOCK_MONOTONIC ns of its exec. Written and deleted here. Full: FEED_UNTRACKED. */
struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__uint(max_entries, 65536);
	__uint(map_flags, BPF_F_NO_PREALLOC);
	__type(key, __u32);
	__type(value, __u64);
} running SEC(".maps");

DEFINE_WALK_NAMES(small_names, SMALL_PATH)
DEFINE_WALK_NAMES(large_names, LARGE_PATH)

/* ---- Helpers ---------------------------------------------------------------------------------------------------------- */

static __always_inline void fill_head(struct feed_head *head, const struct agent *self, struct task_struct *task, __u32 kind)
{
	fill_actor(&head->actor, self, task);
	head->kind = kind;
	head->exit_code = 0;
	head->exec_ns = 0;
	head->exe_used = head->cwd_used = -1;
	head->args_used = head->args_total = 0;
}

/*
 * Defines NAME(): writes an exec into the ring as a RECORD. Returns 0 when it was written or lost (and counted), 1 when it does
 * not fit this size and ``last`` is not set.
 */
#define DEFINE_WRITE_EXEC(NAME, RECORD, NAMES, ARGS)                                                                   \
	static __always_inline int NAME(const struct agent *self, struct task_struct *task, int last)                  \
	{                                                                                                              \
		struct mm_struct *mm = BPF_CORE_READ(task, mm);                                                        \
		unsigned long start = BPF_CORE_READ(mm, arg_start), total = BPF_CORE_READ(mm, arg_end) - start;        \
		struct file *exe = BPF_CORE_READ(mm, exe_file);                                                        \
		struct fs_struct *fs = BPF_CORE_READ(task, fs);                                                        \
		__u32 n = total > (ARGS) ? (ARGS) : total;                                                             \
		struct RECORD *record;                                                                                 \
                                                                                                                       \
		if (total > (ARGS) && !last)                                                                           \
			return 1;                                                                                      \
		record = bpf_ringbuf_reserve(&records, sizeof(*record), 0);                                            \
		if (!record) {                                                                                         \
			count(FEED_DROPPED_EXECS);                                                                     \
			return 0;                                                                                      \
		}                                                                                                      \
		fill_head(&record->head, self, task, RECORD_EXEC);                                                     \
		record->head.args_total = total;                                                                       \
		if (exe)                                                                                               \
			record->head.exe_used = NAMES(record->exe, &exe->f_path);                                      \
		if (fs)                                                                                                \
			record->head.cwd_used = NAMES(record->cwd, &fs->pwd);                                          \
		if (!last && (record->head.exe_used < 0 || record->head.cwd_used < 0)) {                               \
			bpf_ringbuf_discard(record, 0);                                                                \
			return 1;                                                                                      \
		}                                                                                                      \
		if (n <= (ARGS) && !bpf_probe_read_user(record->args, n, (void *)start))                               \
			record->head.args_used = n;                                                                    \
		bpf_ringbuf_submit(record, 0);                                                                         \
		return 0;                                                                                              \
	}

DEFINE_WRITE_EXEC(write_small, small_record, small_names, SMALL_ARGS)
DEFINE_WRITE_EXEC(write_large, large_record, large_names, LARGE_ARGS)

/* ---- Hooks ------------------------------------------------------------------------------------------------------------ */

SEC("raw_tp/sched_process_exec") int feed_exec(struct bpf_raw_tracepoint_args *ctx)
{
	struct task_struct *task = (void *)ctx->args[0];
	__u32 zero = 0, tgid = BPF_CORE_READ(task, tgid);
	struct agent *self = bpf_map_lookup_elem(&agent, &zero);
	__u64 now = bpf_ktime_get_ns();

	if (!self || !agent_pid(self, task))
		return 0;
	count(FEED_EXECS);
	if (bpf_map_update_elem(&running, &tgid, &now, BPF_ANY))
		count(FEED_UNTRACKED);
	if (write_small(self, task, 0))
		write_large(self, task, 1);
	return 0;
}

SEC("raw_tp/sched_process_exit") int feed_exit(struct bpf_raw_tracepoint_args *ctx)
{
	struct task_struct *task = (void *)ctx->args[0];
	__u32 zero = 0, tgid = BPF_CORE_READ(task, tgid);
	struct signal_struct *signal = BPF_CORE_READ(task, signal);
	struct agent *self = bpf_map_lookup_elem(&agent, &zero);
	struct feed_head *head;
	__u64 *found, exec_ns;

	if (!self || BPF_CORE_READ(signal, live.counter)) /* other threads live on */
		return 0;
	found = bpf_map_lookup_elem(&running, &tgid);
	if (!found)
		return 0;
	exec_ns = *found;
	bpf_map_delete_elem(&running, &tgid);
	count(FEED_EXITS);
	head = bpf_ringbuf_reserve(&records, sizeof(*head), 0);
	if (!head) {
		count(FEED_DROPPED_EXITS);
		return 0;
	}
	fill_head(head, self, task, RECORD_EXIT);
	head->exec_ns = exec_ns;
	if (BPF_CORE_READ(signal, flags) & SIGNAL_GROUP_EXIT)
		head->exit_code = BPF_CORE_READ(signal, group_exit_code);
	else
		head->exit_code = BPF_CORE_READ(task, group_leader, exit_code);
	bpf_ringbuf_submit(head, 0);
	return 0;
}

char LICENSE[] SEC("license") = "GPL";

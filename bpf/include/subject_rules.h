/* SPDX-License-Identifier: GPL-2.0-only */
/*
 * Rules about what is not a path: sockets, capabilities, domains, presets. All that the acting program is (subject.h) and a number
 * that stands for the kind of socket, the capability and so on lead to an outcome, by the same tables as for paths. What the
 * numbers mean is said by garrison.minion.enforcers.bpf_lsm.subjects and domains; the event is decoded by subject_events.py.
 *
 * Never decided: kernel threads, and the agent, which must reach its master to get a better policy.
 * What a process repeats (the same operation on the same object under the same rule) is told once in REPEAT_NS and counted
 * meanwhile, where the hook says so; the verdict holds each time. No memory to remember that: it is told each time.
 */
#ifndef GARRISON_SUBJECT_RULES_H
#define GARRISON_SUBJECT_RULES_H

#include "enforce.h"

#define ENTITY_NETWORK 2
#define ENTITY_CAPABILITY 3
#define ENTITY_DNS 4
#define ENTITY_PRESET 5
#define NETWORK_SETS (1U << 30)	   /* and the bits of socket_names.h */
#define CAPABILITY_SETS (1U << 29) /* and the number of the capability */
#define PRESET_SETS (1U << 27)	   /* and enum preset */
#define REPEAT_NS 10000000000ULL

enum subject_operation { ON_SOCKET, ON_BIND, ON_LISTEN, ON_CONNECT, ON_ACCEPT, ON_SENDMSG, ON_CAPABLE, ON_QUERY };

/* In the order of PRESETS in garrison.common.policy.models. */
enum preset { PRESET_FILELESS, PRESET_ANONYMOUS, PRESET_ENVIRON, PRESET_PROC, PRESET_EXEC };

/* Fields that only these programs read. A type's name ends at the three underscores when it is looked up in the kernel. */
struct task_struct___subject {
	struct task_struct *group_leader;
	const struct cred *real_cred;
	__u64 start_time;
} __attribute__((preserve_access_index));

/* ---- Maps ------------------------------------------------------------------------------------------------------------- */

struct subject_head {
	__u64 capabilities; /* bit per capability: some program is refused or watched when it uses it */
	__u64 anyone;	    /* likewise: subjects that have no row in class_capabilities, nor what they fall back to */
	__u32 generation;
	__u32 network;	  /* there are network rules */
	__u32 dns;	  /* there are rules on domains */
	__u32 unreadable; /* set of the rules that count when a query cannot be read */
	__u32 presets;	  /* bit per enum preset: there are rules */
	__u32 root_dev;	  /* the host's root file system; 0: not known */
};
_Static_assert(sizeof(struct subject_head) == 40, "struct subject_head");

TWO_COPIES(subject_heads, BPF_MAP_TYPE_ARRAY, BPF_F_INNER_MAP, sizeof(__u32), sizeof(struct subject_head));
/* Subject -> bits of capabilities, where they differ from anyone's. */
TWO_COPIES(class_capabilities, BPF_MAP_TYPE_HASH, 0, sizeof(__u32), sizeof(__u64));

struct exempt {
	__u64 start_time; /* with it a process is told from a later one of the same number */
	__u32 tgid;	  /* in the first PID namespace */
	__u32 pad;
};

/* Key 0: the agent. Written by note_exempt, which the agent runs; all zero before. */
struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(max_entries, 1);
	__type(key, __u32);
	__type(value, struct exempt);
} exempt SEC(".maps");

struct repeat_key {
	__u32 tgid;
	__u32 operation;
	__u32 generation;
	__u32 rule;
	__u32 number; /* port or capability */
	__u8 addr[16];
};

struct repeat {
	__u64 until; /* CLOCK_MONOTONIC, ns */
	__u64 count; /* of operations that were not told */
	__u64 told;  /* how many of them the last event knew of */
};

/* What was told lately. Full: what was longest not asked for is forgotten, and told again. */
struct {
	__uint(type, BPF_MAP_TYPE_LRU_HASH);
	__uint(max_entries, 16384);
	__type(key, struct repeat_key);
	__type(value, struct repeat);
} repeats SEC(".maps");

enum subject_counter { COUNT_REPEATS, COUNT_QUIET, SUBJECT_COUNTERS };

/* Figures by enum subject_counter. Written here, read by user space. */
struct {
	__uint(type, BPF_MAP_TYPE_PERCPU_ARRAY);
	__uint(max_entries, SUBJECT_COUNTERS);
	__type(key, __u32);
	__type(value, __u64);
} subject_counters SEC(".maps");

struct subject_event {
	struct actor actor;
	__u32 generation;
	__u32 operation;
	struct outcome outcome;
	__u32 repeats; /* operations like this one that were not told since the last event */
	__s32 exe_used;
	__u16 family;
	__u16 type;
	__u16 protocol;
	__u16 port;	/* host order */
	__u8 addr[16];	/* network order; AF_VSOCK: cid and port, 4 bytes each in host order */
	__u32 capability;
	__u32 pad;
	__u64 suppressed; /* events of the rule so far that were only counted: event_rate.h */
	char exe[EVENT_NAMES + NAME_MAX_BYTES];
};
_Static_assert(sizeof(struct subject_event) == 88 + 64 + EVENT_NAMES + NAME_MAX_BYTES, "struct subject_event");

/* ---- Helpers ---------------------------------------------------------------------------------------------------------- */

/* What a hook knows of an operation. */
struct attempt {
	__u32 operation;
	__u32 set;
	__u32 quiet; /* bits of enum quiet */
	__u32 capability;
	__u16 family;
	__u16 type;
	__u16 protocol;
	__u16 port;
	__u8 addr[16];
};

enum quiet {
	QUIET_AUDITS = 1,  /* an audit of this was or will be told by another hook */
	QUIET_REPEATS = 2, /* programs do this in a loop */
	QUIET_ALL = 4,	   /* the kernel only asks what it may offer: no one has tried anything */
};

static __always_inline void count_subject(__u32 which)
{
	__u64 *figure = bpf_map_lookup_elem(&subject_counters, &which);

	if (figure)
		__sync_fetch_and_add(figure, 1);
}

static __always_inline struct subject_head *subject_head(__u32 copy)
{
	__u32 zero = 0;
	void *inner = bpf_map_lookup_elem(&subject_heads, &copy);
	struct subject_head *head = inner ? bpf_map_lookup_elem(inner, &zero) : NULL;

	return head && head->generation ? head : NULL;
}

static __always_inline __u64 start_of(struct task_struct *task)
{
	struct task_struct___subject *leader = (void *)BPF_CORE_READ(task, group_leader);

	return BPF_CORE_READ(leader, start_time);
}

static __always_inline int is_exempt(struct task_struct *task)
{
	__u32 zero = 0;
	const struct exempt *agent_process = bpf_map_lookup_elem(&exempt, &zero);

	if (task->flags & PF_KTHREAD)
		return 1;
	return agent_process && agent_process->tgid == task->tgid && agent_process->start_time == start_of(task);
}

#define TOLD_LATELY 0xffffffffU

/* TOLD_LATELY when a like operation was, and it is counted; else how many were counted since the last event. Verified for itself. */
__noinline __u32 count_repeat(const struct attempt *attempt, __u32 tgid, __u32 generation, __u32 rule)
{
	struct repeat_key key = {.tgid = tgid, .generation = generation, .rule = rule};
	__u64 now = bpf_ktime_get_ns();
	struct repeat fresh = {.until = now + REPEAT_NS}, *kept;
	__u32 repeated;

	if (!attempt)
		return 0;
	key.operation = attempt->operation;
	key.number = attempt->operation == ON_CAPABLE ? attempt->capability : attempt->port;
	__builtin_memcpy(key.addr, attempt->addr, sizeof(key.addr));
	kept = bpf_map_lookup_elem(&repeats, &key);
	if (!kept) {
		bpf_map_update_elem(&repeats, &key, &fresh, BPF_ANY);
		return 0;
	}
	if (now < kept->until) {
		__sync_fetch_and_add(&kept->count, 1);
		count_subject(COUNT_REPEATS);
		return TOLD_LATELY;
	}
	repeated = kept->count - kept->told;
	kept->told = kept->count;
	kept->until = now + REPEAT_NS;
	return repeated == TOLD_LATELY ? 0 : repeated;
}

/* Verified for itself. */
__noinline int write_subject(const struct attempt *attempt, __u32 generation, __u64 outcome, __u32 repeated, __u64 suppressed)
{
	struct task_struct *task = (void *)bpf_get_current_task();
	struct mm_struct *mm = BPF_CORE_READ(task, mm);
	struct file *exe = mm ? BPF_CORE_READ(mm, exe_file) : NULL;
	__u32 zero = 0;
	const struct agent *self = bpf_map_lookup_elem(&agent, &zero);
	struct subject_event *event;

	if (!attempt)
		return 0;
	event = self ? bpf_ringbuf_reserve(&events, sizeof(*event), 0) : NULL;
	if (!event) {
		count_lost(generation, outcome, 1 + repeated);
		return 0;
	}
	fill_actor(&event->actor, self, task);
	event->generation = generation;
	event->operation = attempt->operation;
	event->outcome = unpacked(outcome);
	event->repeats = repeated;
	event->family = attempt->family;
	event->type = attempt->type;
	event->protocol = attempt->protocol;
	event->port = attempt->port;
	__builtin_memcpy(event->addr, attempt->addr, sizeof(event->addr));
	event->capability = attempt->capability;
	event->pad = 0;
	event->suppressed = suppressed;
	event->exe_used = exe ? event_names(event->exe, &exe->f_path) : -1;
	bpf_ringbuf_submit(event, 0);
	return 0;
}

/* Verified for itself. */
__noinline int tell_subject(const struct attempt *attempt, __u32 generation, __u64 outcome)
{
	__u32 repeated = 0;
	__u64 suppressed;

	if (!attempt)
		return 0;
	if (attempt->quiet & QUIET_REPEATS)
		repeated = count_repeat(attempt, bpf_get_current_pid_tgid() >> 32, generation, outcome);
	if (repeated == TOLD_LATELY)
		return 0;
	suppressed = take_token(generation, outcome, unpacked(outcome).verdict, repeated);
	if (suppressed == OVER_RATE) {
		count(COUNT_SUPPRESSED);
		return 0;
	}
	return write_subject(attempt, generation, outcome, repeated, suppressed);
}

/*
 * Verdict on an operation that the set ``attempt->set`` names, by who is identified in ``request``, whose place is filled here.
 * Returns 0 or -EPERM.
 */
static __always_inline int judge(const struct attempt *attempt, __u32 entity, struct request *request)
{
	__u64 outcome;
	int block;

	request->at.space = entity;
	request->at.set = request->at.home = attempt->set;
	count(COUNT_DECISIONS);
	outcome = weigh_request(request);
	if (unpacked(outcome).verdict < VERDICT_AUDIT)
		return 0;
	block = unpacked(outcome).verdict == VERDICT_BLOCK;
	if (attempt->quiet & QUIET_ALL) {
		count_subject(COUNT_QUIET);
	} else if (block || !(attempt->quiet & QUIET_AUDITS)) {
		count(block ? COUNT_BLOCKS : COUNT_AUDITS);
		tell_subject(attempt, request->generation, outcome);
	}
	return block ? -EPERM : 0;
}

#endif

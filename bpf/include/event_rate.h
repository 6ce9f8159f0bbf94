/* SPDX-License-Identifier: GPL-2.0-only */
/*
 * How many events a rule may tell in a time: a bucket of tokens for each rule of each generation, so that no rule can fill the ring
 * for the others. What is above the rate is counted; verdicts do not depend on it.
 *
 * Exact: a decision that is to be told is told, or counted as suppressed, or counted as lost, each by one addition. Events carry the
 * sum so far, so user space knows how many lie between two of them. CPUs that decide at once may each take the last token: the rate
 * is then exceeded by that much, the sum is not wrong.
 */
#ifndef GARRISON_EVENT_RATE_H
#define GARRISON_EVENT_RATE_H

#include "kernel_types.h"

#include <bpf/bpf_helpers.h>

struct event_rate {
	__u64 interval_ns; /* between tokens; 0: no limit */
	__u64 slack_ns;	   /* how far ahead of its time an event may come: (burst - 1) * interval_ns */
};

/* Key 0. Written by the agent. */
struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(max_entries, 1);
	__type(key, __u32);
	__type(value, struct event_rate);
} event_rate SEC(".maps");

/* Attempts at the agent are no rule's: generation 0, and this many plus their number in ``enum attempt``. */
#define TAMPER_RULES 1

struct rule_key {
	__u32 generation;
	__u32 rule; /* 0: of a posture alone */
};

struct rule_rate {
	__u64 due;	  /* CLOCK_MONOTONIC, ns: when all tokens are back */
	__u64 suppressed; /* events that were counted instead of told; only rises */
	__u32 verdict;	  /* of the last of them */
	__u32 pad;
};

/*
 * Generation and rule -> its bucket. Written here; read by user space, and deleted with its generation. Full: the rule is told
 * without limit.
 */
struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__uint(max_entries, 65536);
	__uint(map_flags, BPF_F_NO_PREALLOC);
	__type(key, struct rule_key);
	__type(value, struct rule_rate);
} rule_rates SEC(".maps");

/* The same keys -> how many of ``suppressed`` were told by an event. Written and read by user space alone, from agent to agent. */
struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__uint(max_entries, 65536);
	__uint(map_flags, BPF_F_NO_PREALLOC);
	__type(key, struct rule_key);
	__type(value, __u64);
} rule_told SEC(".maps");

#define OVER_RATE (~0ULL)

/*
 * Takes a token. Returns OVER_RATE when there is none, and has counted then; else how many were counted so far. ``also``: further
 * operations that the event stands for. Verified for itself.
 */
__noinline __u64 take_token(__u32 generation, __u32 rule, __u32 verdict, __u32 also)
{
	struct rule_key key = {.generation = generation, .rule = rule};
	__u32 zero = 0;
	const struct event_rate *rate = bpf_map_lookup_elem(&event_rate, &zero);
	struct rule_rate fresh = {}, *kept;
	__u64 now, start;

	if (!rate || !rate->interval_ns)
		return 0;
	kept = bpf_map_lookup_elem(&rule_rates, &key);
	if (!kept) {
		bpf_map_update_elem(&rule_rates, &key, &fresh, BPF_NOEXIST);
		kept = bpf_map_lookup_elem(&rule_rates, &key);
		if (!kept)
			return 0;
	}
	now = bpf_ktime_get_ns();
	start = kept->due > now ? kept->due : now;
	if (start - now > rate->slack_ns) {
		kept->verdict = verdict;
		__sync_fetch_and_add(&kept->suppressed, 1 + (__u64)also);
		return OVER_RATE;
	}
	kept->due = start + rate->interval_ns;
	return kept->suppressed;
}

#endif

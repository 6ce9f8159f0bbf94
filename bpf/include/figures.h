/* SPDX-License-Identifier: GPL-2.0-only */
/* Figures of the enforcement programs. Python reads them by the same numbers (garrison.minion.enforcers.bpf_lsm.events). */
#ifndef GARRISON_FIGURES_H
#define GARRISON_FIGURES_H

#include "kernel_types.h"

#include <bpf/bpf_helpers.h>

enum counter { COUNT_DECISIONS, COUNT_BLOCKS, COUNT_AUDITS, COUNT_LOST, COUNT_UNNAMED, COUNT_UNRESOLVED, COUNT_TABLE, COUNT_WALKS, COUNT_SUPPRESSED, COUNTERS };

/* Figures by enum counter. Written here, read by user space. */
struct {
	__uint(type, BPF_MAP_TYPE_PERCPU_ARRAY);
	__uint(max_entries, COUNTERS);
	__type(key, __u32);
	__type(value, __u64);
} counters SEC(".maps");

static __always_inline void count(__u32 which)
{
	__u64 *figure = bpf_map_lookup_elem(&counters, &which);

	if (figure)
		__sync_fetch_and_add(figure, 1);
}

#endif

/* SPDX-License-Identifier: GPL-2.0-only */
/* Figures by number. Who includes this has an enum of them before, which ends with COUNTERS. */
#ifndef GARRISON_COUNTERS_H
#define GARRISON_COUNTERS_H

#include "kernel_types.h"

#include <bpf/bpf_helpers.h>

/* Written here, read by user space. */
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

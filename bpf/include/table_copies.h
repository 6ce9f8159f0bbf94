/* SPDX-License-Identifier: GPL-2.0-only */
/* Tables that stand twice: the copy that does not hold is filled, then one write switches. */
#ifndef GARRISON_TABLE_COPIES_H
#define GARRISON_TABLE_COPIES_H

#include "kernel_types.h"

#include <bpf/bpf_helpers.h>

#define TWO_COPIES(NAME, TYPE, FLAGS, KEY_SIZE, VALUE_SIZE)                                                            \
	struct NAME##_copy {                                                                                           \
		__uint(type, TYPE);                                                                                    \
		__uint(max_entries, 1);                                                                                \
		__uint(map_flags, FLAGS);                                                                              \
		__uint(key_size, KEY_SIZE); /* sizes: clang 14 leaves the types of inner maps out of BTF */            \
		__uint(value_size, VALUE_SIZE);                                                                        \
	};                                                                                                             \
	struct {                                                                                                       \
		__uint(type, BPF_MAP_TYPE_ARRAY_OF_MAPS);                                                              \
		__uint(max_entries, 2);                                                                                \
		__type(key, __u32);                                                                                    \
		__array(values, struct NAME##_copy);                                                                   \
	} NAME SEC(".maps")

#endif

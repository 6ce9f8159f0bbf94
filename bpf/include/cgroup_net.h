/* SPDX-License-Identifier: GPL-2.0-only */
/* What cgroup_net.bpf.c shares with user space. garrison.minion.enforcers.cgroup_net.layout holds the other half. */
#ifndef GARRISON_CGROUP_NET_H
#define GARRISON_CGROUP_NET_H

#include "actor.h"
#include "program_row.h"

#define EXE_BYTES 768 /* of names; a longer path is cut and marked */

#define PROTOCOL_GROUPS 8
#define SOCKET_TYPES 8 /* SOCK_STREAM 1 … SOCK_DCCP 6; a power of two, so that the verifier sees the bound */
#define CELLS (SOCKET_TYPES * PROTOCOL_GROUPS)

/* Which column of a row speaks for a socket: type * PROTOCOL_GROUPS + group. */
enum protocol_group {
	GROUP_OTHER = 0,
	GROUP_TCP = 1,
	GROUP_UDP = 2,
	GROUP_ICMP = 3,
	GROUP_ICMPV6 = 4,
	GROUP_SCTP = 5,
	GROUP_DCCP = 6,
	GROUP_UDPLITE = 7,
};

/* A decision: verdict in the upper two bits, index of the rule in the generation's list below. */
#define CELL_VERDICT(cell) ((cell) >> 30)
#define CELL_RULE(cell) ((cell)&0x3fffffffU)

enum verdict {
	VERDICT_ALLOW = 0,
	VERDICT_AUDIT = 1,
	VERDICT_BLOCK = 2,
};

struct row {
	__u32 generation;
	__u32 flags;
	__u32 cell[CELLS];
};
_Static_assert(sizeof(struct row) == 264, "struct row");

enum operation {
	OP_CONNECT = 1,
	OP_SENDMSG = 2,
	OP_BIND = 3,
	OP_SOCKET = 4,
};

struct net_event {
	struct actor actor;
	__u32 generation;
	__u32 rule;
	__u8 verdict;
	__u8 operation;
	__u8 type;   /* SOCK_* */
	__u8 family; /* AF_INET or AF_INET6: how ``addr`` is to be read */
	__u16 protocol;
	__u16 port;	/* host order */
	__u8 addr[16];	/* network order; zero for OP_SOCKET */
	__s32 exe_used; /* bytes of ``exe``; negative: -1 - bytes, and the path was cut */
	__u32 pad;
	char exe[EXE_BYTES + 256];
};
_Static_assert(sizeof(struct net_event) == 88 + 40 + EXE_BYTES + 256, "struct net_event");

struct drop_key {
	__u32 generation;
	__u32 rule;
};
_Static_assert(sizeof(struct drop_key) == 8, "struct drop_key");

/* Indices of the map ``counters``. */
enum counter {
	COUNT_BLOCKED,
	COUNT_AUDITED,
	COUNT_UNRESOLVED, /* decisions about a program whose path could not be told */
	COUNT_DROPPED,	  /* events that did not fit into the ring; by rule in ``drops`` */
	COUNT_UNNAMED,	  /* of those, events that ``drops`` had no room for either */
	COUNTERS,
};

#endif

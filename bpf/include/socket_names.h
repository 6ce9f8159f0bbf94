/* SPDX-License-Identifier: GPL-2.0-only */
/*
 * Which protocol names a socket answers to, as a set of bits: what garrison.common.policy.protocols.socket_names says. A test
 * compiles this header for the host and compares the two for every family, type and protocol.
 * Depends on nothing but integers, for that test's sake.
 */
#ifndef GARRISON_SOCKET_NAMES_H
#define GARRISON_SOCKET_NAMES_H

#include <linux/types.h>

/* In the order of PROTOCOLS in garrison.common.policy.models. */
#define NAME_TCP (1U << 0)
#define NAME_UDP (1U << 1)
#define NAME_RAW (1U << 2)
#define NAME_ICMP (1U << 3)
#define NAME_ICMPV6 (1U << 4)
#define NAME_SCTP (1U << 5)
#define NAME_STREAM (1U << 6)
#define NAME_DGRAM (1U << 7)
#define NAME_RDM (1U << 8)
#define NAME_SEQPACKET (1U << 9)
#define NAME_DCCP (1U << 10)
#define NAME_PACKET (1U << 11)
#define NAME_ALL (1U << 12)

/* include/linux/socket.h */
#define AF_UNSPEC 0
#define AF_UNIX 1
#define AF_INET 2
#define AF_INET6 10
#define AF_NETLINK 16
#define AF_PACKET 17
#define AF_VSOCK 40
#define AF_SMC 43

/* include/linux/net.h */
#define SOCK_STREAM 1
#define SOCK_DGRAM 2
#define SOCK_RAW 3
#define SOCK_RDM 4
#define SOCK_SEQPACKET 5
#define SOCK_DCCP 6
#define SOCK_PACKET 10
#define SOCK_TYPE_MASK 0xf

/* include/uapi/linux/in.h */
#define IPPROTO_ICMP 1
#define IPPROTO_TCP 6
#define IPPROTO_UDP 17
#define IPPROTO_ICMPV6 58
#define IPPROTO_SCTP 132
#define IPPROTO_UDPLITE 136
#define IPPROTO_SMC 256 /* 6.11 and later; falls back to TCP */
#define IPPROTO_MPTCP 262

static inline __attribute__((always_inline)) __u32 type_name(__u32 type)
{
	switch (type) {
	case SOCK_STREAM:
		return NAME_STREAM;
	case SOCK_DGRAM:
		return NAME_DGRAM;
	case SOCK_RAW:
		return NAME_RAW;
	case SOCK_RDM:
		return NAME_RDM;
	case SOCK_SEQPACKET:
		return NAME_SEQPACKET;
	case SOCK_DCCP:
		return NAME_DCCP;
	case SOCK_PACKET:
		return NAME_PACKET;
	default:
		return 0;
	}
}

static inline __attribute__((always_inline)) __u32 inet_name(__u32 type, __u32 protocol)
{
	if (type == SOCK_STREAM && (!protocol || protocol == IPPROTO_TCP || protocol == IPPROTO_MPTCP || protocol == IPPROTO_SMC))
		return NAME_TCP;
	if (type == SOCK_DGRAM && (!protocol || protocol == IPPROTO_UDP || protocol == IPPROTO_UDPLITE))
		return NAME_UDP;
	if ((type == SOCK_DGRAM || type == SOCK_RAW) && protocol == IPPROTO_ICMP)
		return NAME_ICMP;
	if ((type == SOCK_DGRAM || type == SOCK_RAW) && protocol == IPPROTO_ICMPV6)
		return NAME_ICMPV6;
	if ((type == SOCK_STREAM || type == SOCK_SEQPACKET) && protocol == IPPROTO_SCTP)
		return NAME_SCTP;
	return type == SOCK_SEQPACKET && !protocol ? NAME_SCTP : 0;
}

/* 0 for local sockets, which answer to nothing. ``type`` may have flags. */
static inline __attribute__((always_inline)) __u32 socket_names(__u32 family, __u32 type, __u32 protocol)
{
	__u32 kind = type & SOCK_TYPE_MASK, names = NAME_ALL | type_name(kind);

	if (family == AF_UNIX || family == AF_NETLINK)
		return 0;
	if (family == AF_INET || family == AF_INET6)
		return names | inet_name(kind, protocol);
	if (family == AF_PACKET)
		return names | NAME_PACKET | NAME_RAW;
	return family == AF_SMC ? names | NAME_TCP : names;
}

#endif

/* SPDX-License-Identifier: GPL-2.0-only */
/*
 * An outgoing packet: whether it goes to port 53, and where what it says begins. IPv4, and IPv6 with extension headers.
 *
 * Of a packet that is a piece, the first has the ports and is what others are lost without: only that is looked at, and it counts as cut.
 * More than EXTENSIONS_MAX headers: it may go anywhere, so it counts as cut, too.
 */
#ifndef GARRISON_DNS_PACKET_H
#define GARRISON_DNS_PACKET_H

#include "dns_message.h"
#include "socket_names.h"

#define DNS_PORT 53
#define EXTENSIONS_MAX 8
#define IP_MF 0x2000
#define IP_OFFSET 0x1fff

/* include/uapi/linux/in6.h, in.h */
#define NEXT_HOP 0
#define NEXT_ROUTING 43
#define NEXT_FRAGMENT 44
#define NEXT_AUTH 51
#define NEXT_DESTINATION 60

/* What a program is, in the terms of one generation. */
struct identity {
	struct past program;
	__u32 alias;
	__u32 extra;
	__u32 also; /* profile of a container that it has left */
	__u32 exempt;
	__u32 tgid; /* in the first PID namespace */
	__u32 pad;
};

/* What is known of one packet. */
struct query {
	struct identity who;
	__u64 outcome; /* the strictest so far */
	__u64 hash;    /* of the name that it is about */
	__u32 name_at;
	__u32 name_bytes;
	__u32 copy;
	__u32 generation;
	__u32 payload; /* from the network header */
	__u32 end;
	__u16 family;
	__u16 protocol;
	__u8 flags; /* of TCP */
	__u8 is_cut; /* a piece of something, or more headers than are looked at */
	__u8 pad[2];
};

static __always_inline void skip_extensions(struct __sk_buff *skb, struct query *query, __u32 *at, __u8 *protocol)
{
	struct {
		__u8 next, len;
		__be16 offset;
	} header;
	int i;

	for (i = 0; i < EXTENSIONS_MAX; i++) {
		if (*protocol != NEXT_HOP && *protocol != NEXT_ROUTING && *protocol != NEXT_FRAGMENT && *protocol != NEXT_AUTH &&
		    *protocol != NEXT_DESTINATION)
			return;
		if (bpf_skb_load_bytes(skb, *at, &header, sizeof(header))) {
			*protocol = NEXT_FRAGMENT;
			return;
		}
		if (*protocol == NEXT_FRAGMENT) {
			*at += 8;
			if (header.offset & bpf_htons(0xfff8)) {
				/* The first piece has the ports. Without it the others are lost. */
				*protocol = NEXT_FRAGMENT;
				return;
			}
			query->is_cut |= header.offset & bpf_htons(1) ? 1 : 0;
		} else {
			*at += *protocol == NEXT_AUTH ? (header.len + 2) * 4 : (header.len + 1) * 8;
		}
		*protocol = header.next;
	}
	query->is_cut = 2;
}

/* Where the transport header is; 0: none that we know of. */
static __always_inline __u32 find_transport(struct __sk_buff *skb, struct query *query, __u8 *protocol)
{
	__u8 first;
	__be16 offset = 0;
	__u32 at;

	if (bpf_skb_load_bytes(skb, 0, &first, 1))
		return 0;
	if (first >> 4 == 4) {
		query->family = AF_INET;
		if (bpf_skb_load_bytes(skb, 6, &offset, 2) || bpf_skb_load_bytes(skb, 9, protocol, 1) ||
		    offset & bpf_htons(IP_OFFSET))
			return 0;
		query->is_cut = offset & bpf_htons(IP_MF) ? 1 : 0;
		return (first & 0xf) * 4;
	}
	if (first >> 4 != 6 || bpf_skb_load_bytes(skb, 6, protocol, 1))
		return 0;
	query->family = AF_INET6;
	at = 40;
	skip_extensions(skb, query, &at, protocol);
	return at;
}

/* Returns whether the packet is to port 53, or may be. Verified for itself. */
__noinline int find_payload(struct __sk_buff *skb, struct query *query)
{
	struct {
		__be16 from, to;
	} ports = {};
	__u8 protocol = 0, offset = 0;
	__u32 at;

	if (!query)
		return 0;
	at = find_transport(skb, query, &protocol);
	if (!at)
		return 0;
	query->end = skb->len;
	if (query->is_cut == 2)
		return 1;
	if ((protocol != IPPROTO_UDP && protocol != IPPROTO_TCP) || bpf_skb_load_bytes(skb, at, &ports, sizeof(ports)) ||
	    ports.to != bpf_htons(DNS_PORT))
		return 0;
	query->protocol = protocol;
	if (protocol == IPPROTO_UDP) {
		query->payload = at + 8;
		query->is_cut |= skb->gso_size ? 1 : 0;
		return 1;
	}
	if (bpf_skb_load_bytes(skb, at + 12, &offset, 1) || bpf_skb_load_bytes(skb, at + 13, &query->flags, 1))
		return 0;
	query->payload = at + (offset >> 4) * 4;
	return 1;
}

#endif

// SPDX-License-Identifier: GPL-2.0-only
/*
 * Which programs may use which protocols, for sockets of every family but the local ones (Unix, netlink).
 *
 * hook                 duty
 * lsm/socket_create    all sockets but TCP and UDP: raw, ping, packet, SCTP, vsock, ...
 * lsm/socket_connect   TCP and UDP to an address
 * lsm/socket_sendmsg   UDP to an address without connect; TCP Fast Open, which never calls connect
 * lsm/socket_bind      TCP and UDP on an address of one's own
 * lsm/socket_listen    TCP that was not bound, on a port that the kernel chooses
 * lsm/socket_accept    TCP from outside
 *
 * TCP and UDP are decided when they are given an address, because that is what somebody wants to read in the event. At each hook
 * the other sockets are refused too, so that one that another program made and handed over does not help; an audit of them was
 * told when they were made.
 *
 * Not covered: data on a TCP or UDP socket that was connected before, or by another program; sockets of the kernel itself.
 */
#include <linux/bpf.h>

#include "include/socket_names.h"
#include "include/subject_rules.h"

#include <bpf/bpf_endian.h>

#define MSG_FASTOPEN 0x20000000 /* include/linux/socket.h */

#pragma clang attribute push(__attribute__((preserve_access_index)), apply_to = record)

struct in6_addr {
	union {
		__u8 u6_addr8[16];
	} in6_u;
};

struct sock_common {
	unsigned short skc_family;
	__u16 skc_num; /* port of one's own, host order; 0 before it has one */
	__u32 skc_rcv_saddr;
	struct in6_addr skc_v6_rcv_saddr;
};

struct sock {
	struct sock_common __sk_common;
	__u16 sk_protocol;
	__u16 sk_type;
};

struct socket {
	short type;
	struct sock *sk;
};

struct msghdr {
	void *msg_name;
	int msg_namelen;
	unsigned int msg_flags;
};

#pragma clang attribute pop

/* What user space hands over, in the kernel's copy. */
struct address {
	__u16 family;
	__u16 port; /* network order */
	union {
		struct {
			__u8 v4[4];
			__u8 v6[16];
		};
		struct {
			__u32 vsock_port, cid;
		};
	};
};

/* ---- Helpers ---------------------------------------------------------------------------------------------------------- */

/* Decided by the address that it is used with, not when it is made. */
static __always_inline int by_address(const struct attempt *attempt)
{
	return attempt->set & (NAME_TCP | NAME_UDP) && (attempt->family == AF_INET || attempt->family == AF_INET6);
}

/* Verified for itself: what follows is not gone through anew for each kind of socket. */
__noinline __u32 names_of(__u32 family, __u32 type, __u32 protocol)
{
	return socket_names(family, type, protocol);
}

/* Returns whether rules can name the socket. */
static __always_inline int fill_socket(struct attempt *attempt, struct socket *sock)
{
	struct sock *sk = sock->sk;
	__u32 names;

	if (!sk)
		return 0;
	attempt->family = sk->__sk_common.skc_family;
	attempt->type = sk->sk_type;
	attempt->protocol = sk->sk_protocol;
	names = names_of(attempt->family, attempt->type, attempt->protocol);
	attempt->set = NETWORK_SETS | names;
	return names != 0;
}

static __always_inline void fill_address(struct attempt *attempt, const void *given, int length)
{
	struct address address = {};

	if (!given || length < 2)
		return;
	/* The kernel's copy is a sockaddr_storage, so there is as much to read; what was not given is left out. */
	bpf_probe_read_kernel(&address, sizeof(address), given);
	if (attempt->family == AF_VSOCK) {
		__builtin_memcpy(attempt->addr, &address.cid, 4);
		__builtin_memcpy(attempt->addr + 4, &address.vsock_port, 4);
		return;
	}
	if (attempt->family != AF_INET && attempt->family != AF_INET6)
		return;
	attempt->port = bpf_ntohs(address.port);
	/* An IPv6 socket takes IPv4 addresses too in some places: the address says how it is to be read. */
	if (address.family == AF_INET6) {
		attempt->family = AF_INET6;
		if (length >= 24)
			__builtin_memcpy(attempt->addr, address.v6, 16);
	} else {
		attempt->family = AF_INET;
		if (length >= 8)
			__builtin_memcpy(attempt->addr, address.v4, 4);
	}
}

static __always_inline void fill_own_address(struct attempt *attempt, struct socket *sock)
{
	struct sock *sk = sock->sk;

	if (!sk || (attempt->family != AF_INET && attempt->family != AF_INET6))
		return;
	attempt->port = BPF_CORE_READ(sk, __sk_common.skc_num);
	if (attempt->family == AF_INET) {
		__u32 own = BPF_CORE_READ(sk, __sk_common.skc_rcv_saddr);

		__builtin_memcpy(attempt->addr, &own, 4);
	} else if (bpf_core_field_exists(sk->__sk_common.skc_v6_rcv_saddr)) {
		BPF_CORE_READ_INTO(&attempt->addr, sk, __sk_common.skc_v6_rcv_saddr.in6_u.u6_addr8);
	}
}

/* Verified for itself. */
__noinline int decide_socket(const struct attempt *attempt)
{
	struct request request = {};
	const struct subject_head *head = subject_head(active_copy());
	int going;

	if (!attempt || !head || !head->network || is_exempt(bpf_get_current_task_btf()))
		return 0;
	identify(&request, &going);
	return going ? judge(attempt, ENTITY_NETWORK, &request) : 0;
}

/* For the verifier, which does not look into functions that it verifies for themselves: a hook returns 0 or -EPERM. */
static __always_inline int refuse(int verdict)
{
	barrier_var(verdict);
	return verdict ? -EPERM : 0;
}

/* ---- Hooks ------------------------------------------------------------------------------------------------------------ */

SEC("lsm/socket_create") int BPF_PROG(guard_socket, int family, int type, int protocol, int kern, int ret)
{
	struct attempt attempt = {.operation = ON_SOCKET, .family = family, .type = type & SOCK_TYPE_MASK, .protocol = protocol};
	__u32 names = names_of(family, type, protocol);

	if (ret || kern || !names)
		return ret;
	attempt.set = NETWORK_SETS | names;
	return by_address(&attempt) ? 0 : refuse(decide_socket(&attempt));
}

SEC("lsm/socket_connect") int BPF_PROG(guard_connect, struct socket *sock, struct sockaddr *address, int length, int ret)
{
	struct attempt attempt = {.operation = ON_CONNECT};

	if (ret || !fill_socket(&attempt, sock))
		return ret;
	if (!by_address(&attempt)) {
		attempt.quiet = QUIET_AUDITS;
	} else {
		/* The family, in a field that is filled below: the stack is full. */
		bpf_probe_read_kernel(&attempt.port, sizeof(attempt.port), address);
		if (attempt.port == AF_UNSPEC)
			return 0; /* takes a connection down */
		attempt.port = 0;
	}
	fill_address(&attempt, address, length);
	return refuse(decide_socket(&attempt));
}

SEC("lsm/socket_sendmsg") int BPF_PROG(guard_sendmsg, struct socket *sock, struct msghdr *msg, int size, int ret)
{
	struct attempt attempt = {.operation = ON_SENDMSG, .quiet = QUIET_REPEATS};

	if (ret || !fill_socket(&attempt, sock))
		return ret;
	if (!by_address(&attempt))
		attempt.quiet = QUIET_AUDITS | QUIET_REPEATS;
	else if (attempt.set & NAME_TCP ? !(msg->msg_flags & MSG_FASTOPEN) : !msg->msg_name)
		return 0; /* to where it is connected */
	fill_address(&attempt, msg->msg_name, msg->msg_namelen);
	return refuse(decide_socket(&attempt));
}

SEC("lsm/socket_bind") int BPF_PROG(guard_bind, struct socket *sock, struct sockaddr *address, int length, int ret)
{
	struct attempt attempt = {.operation = ON_BIND};

	if (ret || !fill_socket(&attempt, sock))
		return ret;
	if (!by_address(&attempt))
		attempt.quiet = QUIET_AUDITS;
	fill_address(&attempt, address, length);
	return refuse(decide_socket(&attempt));
}

SEC("lsm/socket_listen") int BPF_PROG(guard_listen, struct socket *sock, int backlog, int ret)
{
	struct attempt attempt = {.operation = ON_LISTEN};

	if (ret || !fill_socket(&attempt, sock))
		return ret;
	fill_own_address(&attempt, sock);
	if (!by_address(&attempt) || attempt.port)
		attempt.quiet = QUIET_AUDITS; /* told by bind */
	return refuse(decide_socket(&attempt));
}

SEC("lsm/socket_accept") int BPF_PROG(guard_accept, struct socket *sock, struct socket *made, int ret)
{
	struct attempt attempt = {.operation = ON_ACCEPT, .quiet = QUIET_REPEATS};

	if (ret || !fill_socket(&attempt, sock))
		return ret;
	if (!by_address(&attempt))
		attempt.quiet = QUIET_AUDITS | QUIET_REPEATS;
	fill_own_address(&attempt, sock);
	return refuse(decide_socket(&attempt));
}

char LICENSE[] SEC("license") = "GPL";

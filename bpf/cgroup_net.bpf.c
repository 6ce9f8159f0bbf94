// SPDX-License-Identifier: GPL-2.0-only
/*
 * Which programs may use which protocols, decided per connection.
 *
 * hook                       duty
 * cgroup/connect4, connect6  TCP and UDP to an address; also TCP Fast Open and v4-mapped addresses
 * cgroup/sendmsg4, sendmsg6  UDP to an address without connect
 * cgroup/bind4, bind6        TCP and UDP on an address of one's own
 * cgroup/sock_create         all other IPv4 and IPv6 sockets (raw, ping, SCTP, …): they have no later hook
 *
 * Not covered: sockets of other families (packet, netlink, Unix: no cgroup hook), sockets connected before the policy came, and
 * listen() without bind(), which takes a random port.
 *
 * User space compiles a generation into one hash map of rows (include/cgroup_net.h): one row per program or directory that
 * rules name, with the finished decision for each kind of socket. A generation is put in place by one pointer, so that each
 * decision is made by exactly one of them. The cost does not depend on the number of rules.
 */
#include <linux/bpf.h>

#include "include/cgroup_net.h"
#include "include/counters.h"

#include <bpf/bpf_endian.h>

#define AF_INET 2
#define AF_INET6 10
#define SOCK_STREAM 1
#define SOCK_DGRAM 2
#define IPPROTO_ICMP 1
#define IPPROTO_TCP 6
#define IPPROTO_UDP 17
#define IPPROTO_DCCP 33
#define IPPROTO_ICMPV6 58
#define IPPROTO_SCTP 132
#define IPPROTO_UDPLITE 136
#define IPPROTO_MPTCP 262
#define IPPROTO_SMC 256 /* falls back to TCP when the other side does not speak it */

#define ALLOW 1
#define DENY 0 /* the caller gets EPERM */

/* ---- Maps ------------------------------------------------------------------------------------------------------------- */

struct rows {
	__uint(type, BPF_MAP_TYPE_HASH);
	__uint(max_entries, 1);
	__uint(map_flags, BPF_F_NO_PREALLOC);
	__uint(key_size, sizeof(struct row_key)); /* sizes: clang 14 leaves the types of inner maps out of BTF */
	__uint(value_size, sizeof(struct row));
};

/* Key 0: the rows of the generation that holds. Written by user space, once per generation. Empty: nothing was applied yet,
 * everything is allowed. */
struct {
	__uint(type, BPF_MAP_TYPE_ARRAY_OF_MAPS);
	__uint(max_entries, 1);
	__type(key, __u32);
	__array(values, struct rows);
} generation SEC(".maps");

/* Alerts. Full: the decision holds all the same and the loss is counted in ``counters`` and, by rule, in ``drops``. */
struct {
	__uint(type, BPF_MAP_TYPE_RINGBUF);
	__uint(max_entries, 1 << 20); /* about 900 alerts */
} events SEC(".maps");

/* Lost alerts by generation and rule. Written here, read and deleted by user space. Full: COUNT_UNNAMED. */
struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__uint(max_entries, 1024);
	__type(key, struct drop_key);
	__type(value, __u64);
} drops SEC(".maps");

DEFINE_WALK_NAMES(exe_names, EXE_BYTES)

/* ---- Helpers ---------------------------------------------------------------------------------------------------------- */

/* What a hook knows of the socket and the address. */
struct attempt {
	__u8 operation;
	__u8 family;
	__u8 type;
	__u8 pad;
	__u16 protocol;
	__u16 port;
	__u32 addr[4];
};

static __always_inline void count_drop(__u32 generation_number, __u32 rule)
{
	struct drop_key key = {.generation = generation_number, .rule = rule};
	__u64 zero = 0, *figure;

	count(COUNT_DROPPED);
	bpf_map_update_elem(&drops, &key, &zero, BPF_NOEXIST);
	figure = bpf_map_lookup_elem(&drops, &key);
	if (figure)
		__sync_fetch_and_add(figure, 1);
	else
		count(COUNT_UNNAMED);
}

static __always_inline __u32 group_of(__u32 protocol)
{
	switch (protocol) {
	case IPPROTO_TCP:
	case IPPROTO_MPTCP:
	case IPPROTO_SMC:
		return GROUP_TCP;
	case IPPROTO_UDP:
		return GROUP_UDP;
	case IPPROTO_ICMP:
		return GROUP_ICMP;
	case IPPROTO_ICMPV6:
		return GROUP_ICMPV6;
	case IPPROTO_SCTP:
		return GROUP_SCTP;
	case IPPROTO_DCCP:
		return GROUP_DCCP;
	case IPPROTO_UDPLITE:
		return GROUP_UDPLITE;
	default:
		return GROUP_OTHER;
	}
}

/* TCP and UDP are decided when they are given an address; all else when the socket is made. */
static __always_inline int decided_by_address(__u32 type, __u32 protocol)
{
	return (type == SOCK_STREAM && protocol == IPPROTO_TCP) || (type == SOCK_DGRAM && protocol == IPPROTO_UDP);
}

static __always_inline void report(struct task_struct *task, const struct agent *self, const struct attempt *attempt,
				   __u32 number, __u32 cell)
{
	struct net_event *event = bpf_ringbuf_reserve(&events, sizeof(*event), 0);
	struct file *exe;

	if (!event) {
		count_drop(number, CELL_RULE(cell));
		return;
	}
	fill_actor(&event->actor, self, task);
	event->generation = number;
	event->rule = CELL_RULE(cell);
	event->verdict = CELL_VERDICT(cell);
	event->operation = attempt->operation;
	event->type = attempt->type;
	event->family = attempt->family;
	event->protocol = attempt->protocol;
	event->port = attempt->port;
	__builtin_memcpy(event->addr, attempt->addr, sizeof(event->addr));
	event->pad = 0;
	exe = BPF_CORE_READ(task, mm, exe_file);
	event->exe_used = exe ? exe_names(event->exe, &exe->f_path) : -1;
	bpf_ringbuf_submit(event, 0);
}

static __noinline int decide(const struct attempt *attempt)
{
	struct task_struct *task = (void *)bpf_get_current_task();
	struct row *row, *other;
	struct program program;
	__u32 zero = 0, cell, number;
	__u64 column;
	struct agent *self = bpf_map_lookup_elem(&agent, &zero);
	void *rows = bpf_map_lookup_elem(&generation, &zero);

	if (!rows || !self || BPF_CORE_READ(task, tgid) == self->tgid)
		return ALLOW; /* the agent itself must reach its master to get a better policy */
	other = find_row(rows, 0, ROW_OTHER, 0);
	if (!other)
		return ALLOW;
	row = other;
	number = other->generation;
	/* A kernel thread is no program: no source names it. */
	if ((other->flags & ROW_NEEDS_PATH) && !(BPF_CORE_READ(task, flags) & PF_KTHREAD)) {
		find_program(&program, task);
		row = program_row(rows, &program, other->flags, 0);
		if (!program.resolved)
			count(COUNT_UNRESOLVED);
	}
	if (!row)
		row = other;
	column = attempt->type * PROTOCOL_GROUPS + group_of(attempt->protocol);
	barrier_var(column); /* the verifier must see the check on the register that is used */
	if (column >= CELLS)
		return DENY; /* no such type of socket */
	cell = row->cell[column];
	if (CELL_VERDICT(cell) == VERDICT_ALLOW)
		return ALLOW;
	count(CELL_VERDICT(cell) == VERDICT_BLOCK ? COUNT_BLOCKED : COUNT_AUDITED);
	report(task, self, attempt, number, cell);
	return CELL_VERDICT(cell) == VERDICT_BLOCK ? DENY : ALLOW;
}

static __always_inline int decide_address(struct bpf_sock_addr *ctx, __u8 operation, __u8 family)
{
	struct attempt attempt = {.operation = operation, .family = family};

	if (!decided_by_address(ctx->type, ctx->protocol))
		return ALLOW;
	attempt.type = ctx->type;
	attempt.protocol = ctx->protocol;
	attempt.port = bpf_ntohs(ctx->user_port);
	if (family == AF_INET) {
		attempt.addr[0] = ctx->user_ip4;
	} else {
		attempt.addr[0] = ctx->user_ip6[0];
		attempt.addr[1] = ctx->user_ip6[1];
		attempt.addr[2] = ctx->user_ip6[2];
		attempt.addr[3] = ctx->user_ip6[3];
	}
	return decide(&attempt);
}

/* ---- Hooks ------------------------------------------------------------------------------------------------------------ */

SEC("cgroup/connect4") int net_connect4(struct bpf_sock_addr *ctx)
{
	return decide_address(ctx, OP_CONNECT, AF_INET);
}

SEC("cgroup/connect6") int net_connect6(struct bpf_sock_addr *ctx)
{
	return decide_address(ctx, OP_CONNECT, AF_INET6);
}

SEC("cgroup/sendmsg4") int net_sendmsg4(struct bpf_sock_addr *ctx)
{
	return decide_address(ctx, OP_SENDMSG, AF_INET);
}

SEC("cgroup/sendmsg6") int net_sendmsg6(struct bpf_sock_addr *ctx)
{
	return decide_address(ctx, OP_SENDMSG, AF_INET6);
}

SEC("cgroup/bind4") int net_bind4(struct bpf_sock_addr *ctx)
{
	return decide_address(ctx, OP_BIND, AF_INET);
}

SEC("cgroup/bind6") int net_bind6(struct bpf_sock_addr *ctx)
{
	return decide_address(ctx, OP_BIND, AF_INET6);
}

SEC("cgroup/sock_create") int net_sock_create(struct bpf_sock *ctx)
{
	struct attempt attempt = {.operation = OP_SOCKET, .family = ctx->family, .type = ctx->type, .protocol = ctx->protocol};

	return decided_by_address(ctx->type, ctx->protocol) ? ALLOW : decide(&attempt);
}

char LICENSE[] SEC("license") = "GPL";

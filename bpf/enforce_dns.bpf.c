// SPDX-License-Identifier: GPL-2.0-only
/*
 * Which programs may ask for which domains: what goes out to port 53, over UDP and TCP, is read where it leaves.
 *
 * hook                                     duty
 * lsm/socket_{sendmsg,connect,post_create} who asks is noted at the socket: a packet has no task
 * cgroup_skb/egress                        the questions of an outgoing packet are read, looked up and decided
 *
 * The packet is what the server gets, so nobody can show one name and ask for another. An UDP query that is refused ends in
 * EPERM of the call that sent it; a TCP segment is not sent, and its program waits for an answer in vain.
 *
 * A query that cannot be read counts as one for whatever a block rule names, so it is refused to a program that any block rule on
 * domains is about: also one in several pieces (a TCP segment must hold whole messages; IP fragments; UDP segmentation) and one
 * on a connection that was open before there were rules on domains.
 *
 * Not covered: DNS over TLS, HTTPS and QUIC; other ports; multicast DNS and LLMNR; packets from packet sockets, and those that IPsec
 * has encrypted; names in other sections than the question; answers that a local service fetches for a program that asked it
 * in another way. Not decided: sockets of the kernel itself.
 */
#include <linux/bpf.h>

#include "include/dns_packet.h"

#define SEND 1
#define DROP 0 /* -EPERM */
#define MESSAGES_MAX 4 /* in one TCP segment */
#define TCP_SYN 2

#pragma clang attribute push(__attribute__((preserve_access_index)), apply_to = record)

struct sock_common {
	unsigned short skc_family;
	__u16 skc_dport; /* network order */
};

struct sock {
	struct sock_common __sk_common;
	__u16 sk_type;
	__u16 sk_protocol;
	__u8 sk_kern_sock : 1;
};

struct tcp_sock {
	_Bool is_mptcp;
};

struct socket {
	struct sock *sk;
};

struct msghdr {
	void *msg_name;
	int msg_namelen;
};

struct sk_buff {
	struct sock *sk;
};

#pragma clang attribute pop

/* ---- Maps ------------------------------------------------------------------------------------------------------------- */

enum flow {
	FLOW_UNKNOWN, /* it was not seen from its beginning */
	FLOW_WHOLE,   /* each segment so far held whole messages */
	FLOW_BROKEN,
};

struct asker {
	struct bpf_spin_lock lock; /* of ``who`` */
	__u32 flow;
	struct identity who;
	struct actor actor;
	__u64 refused; /* hash of the name that TCP was last told not to send, and tries again */
};

/*
 * Socket -> who sent on it last. Written by the hooks on sockets; goes with the socket. No memory: whoever sends is not known,
 * so block rules on domains hold whatever their sources are.
 */
struct {
	__uint(type, BPF_MAP_TYPE_SK_STORAGE);
	__uint(map_flags, BPF_F_NO_PREALLOC);
	__type(key, int);
	__type(value, struct asker);
} askers SEC(".maps");

struct query_event {
	struct actor actor;
	__u32 generation;
	__s32 exe_used;
	struct outcome outcome;
	__u32 repeats;
	__u16 family;
	__u16 protocol;
	__u8 addr[16];	    /* of the server, network order */
	__u32 name_bytes;   /* 0: the query cannot be read */
	__u32 pad;
	__u64 suppressed;   /* events of the rule so far that were only counted: event_rate.h */
	__u8 name[256];	    /* as in the packet */
	char exe[EVENT_NAMES + NAME_MAX_BYTES];
};
_Static_assert(sizeof(struct query_event) == 88 + 56 + 256 + EVENT_NAMES + NAME_MAX_BYTES, "struct query_event");

/* ---- Who asks --------------------------------------------------------------------------------------------------------- */

static __always_inline int has_dns_rules(void)
{
	const struct subject_head *head = subject_head(active_copy());

	return head && head->dns;
}

/* Verified for itself. */
__noinline int identify_asker(struct identity *who)
{
	struct task_struct *task = bpf_get_current_task_btf();
	struct request request = {};
	int going;

	if (!who)
		return 0;
	who->tgid = task->tgid;
	who->exempt = is_exempt(task);
	if (who->exempt)
		return 0;
	identify(&request, &going);
	who->program.hash = request.at.sum;
	who->program.generation = request.generation;
	who->program.class = request.class;
	who->alias = request.alias;
	who->extra = request.extra;
	who->also = also_of(&request);
	return 0;
}

/* Verified for itself, so that it takes no stack from the walk up a path. */
__noinline int note_actor(struct actor *actor)
{
	__u32 zero = 0;
	const struct agent *self = bpf_map_lookup_elem(&agent, &zero);

	if (actor && self)
		fill_actor(actor, self, (void *)bpf_get_current_task());
	return 0;
}

static __always_inline void note_asker(struct asker *asker)
{
	struct identity who = {};

	if (!asker)
		return;
	identify_asker(&who);
	bpf_spin_lock(&asker->lock);
	asker->who = who;
	bpf_spin_unlock(&asker->lock);
	note_actor(&asker->actor);
}

static __always_inline int is_inet(const struct sock *sk)
{
	return sk->__sk_common.skc_family == AF_INET || sk->__sk_common.skc_family == AF_INET6;
}

/* IPv4 and IPv6 addresses have their port in the same place. */
static __always_inline int is_dns_address(const void *address)
{
	__u16 port = 0;

	bpf_probe_read_kernel(&port, sizeof(port), address + 2);
	return port == bpf_htons(DNS_PORT);
}

SEC("lsm/socket_sendmsg") int BPF_PROG(guard_dns_send, struct socket *sock, struct msghdr *msg, int size, int ret)
{
	struct sock *sk = sock->sk;

	if (ret || !sk || !is_inet(sk))
		return ret;
	/* What a raw socket sends may be anything. */
	if (sk->__sk_common.skc_dport != bpf_htons(DNS_PORT) && sk->sk_type != SOCK_RAW &&
	    (!msg->msg_name || !is_dns_address(msg->msg_name)))
		return 0;
	if (has_dns_rules())
		note_asker(bpf_sk_storage_get(&askers, sk, 0, BPF_LOCAL_STORAGE_GET_F_CREATE));
	return 0;
}

SEC("lsm/socket_connect") int BPF_PROG(guard_dns_connect, struct socket *sock, struct sockaddr *address, int length, int ret)
{
	struct sock *sk = sock->sk;

	if (ret || !sk || !is_inet(sk) || length < 4 || !is_dns_address(address) || !has_dns_rules())
		return ret;
	note_asker(bpf_sk_storage_get(&askers, sk, 0, BPF_LOCAL_STORAGE_GET_F_CREATE));
	return 0;
}

/* The kernel's own TCP socket below one of MPTCP: nothing else will tell who sends on it. */
SEC("lsm/socket_post_create")
int BPF_PROG(guard_dns_subflow, struct socket *sock, int family, int type, int protocol, int kern, int ret)
{
	struct sock *sk = sock->sk;

	if (ret || !kern || !sk || protocol != IPPROTO_TCP || !is_inet(sk) || bpf_get_current_task_btf()->flags & PF_KTHREAD)
		return ret;
	if (has_dns_rules())
		note_asker(bpf_sk_storage_get(&askers, sk, 0, BPF_LOCAL_STORAGE_GET_F_CREATE));
	return 0;
}

/* ---- What is asked ---------------------------------------------------------------------------------------------------- */

/* The outcome of a set for who asks. Verified for itself. */
__noinline __u64 weigh_name(const struct query *query, __u32 set)
{
	struct request request = {.flags = REQUEST_LISTS};
	const struct head *head;
	struct past program;

	if (!query)
		return 0;
	program = query->who.program;
	request.at.copy = query->copy;
	request.at.space = ENTITY_DNS;
	request.at.set = request.at.home = set;
	request.class = past_class(&program, query->copy, query->generation);
	if (program.generation == query->generation) {
		request.alias = query->who.alias;
		request.extra = query->who.extra;
		request.flags |= query->who.also << ALSO_SHIFT;
	} else {
		/* Its workload has another number now. */
		head = head_of(query->copy);
		act_in(&request, head && head->has_profiles ? UNKNOWN_PROFILE : HOST_PROFILE);
	}
	return weigh_request(&request);
}

static __always_inline void weigh(struct query *query, __u32 set, const struct question *question)
{
	__u64 found = weigh_name(query, set);

	if (!is_stricter(unpacked(found), query->outcome))
		return;
	query->outcome = found;
	query->hash = question ? question->hash : 0;
	query->name_at = question ? question->at : 0;
	query->name_bytes = question ? question->len : 0;
}

/* Weighs the questions of the message from ``at`` to ``end``. Returns whether it was readable. Verified for itself. */
__noinline int weigh_message(struct __sk_buff *skb, struct query *query, __u32 at, __u32 end)
{
	struct question question = {.end = end};
	__be16 counts = 0;
	__u32 number, i;

	if (!query || at + DNS_HEADER_BYTES >= end || bpf_skb_load_bytes(skb, at + 4, &counts, 2))
		return 0;
	number = bpf_ntohs(counts);
	if (!number || number > QUESTIONS_MAX)
		return 0;
	question.copy = query->copy;
	question.at = at + DNS_HEADER_BYTES;
	for (i = 0; i < QUESTIONS_MAX; i++) {
		if (i >= number)
			break;
		read_name(skb, &question);
		if (!question.len || question.at + question.len + QUESTION_TAIL_BYTES > end)
			return 0;
		weigh(query, question.set, &question);
		question.at += question.len + QUESTION_TAIL_BYTES;
	}
	return 1;
}

/* As above, for the messages of a TCP segment, each of which has its length before it. */
static __always_inline int weigh_segment(struct __sk_buff *skb, struct query *query)
{
	__u32 at = query->payload, end, i;
	__be16 len = 0;

	for (i = 0; i < MESSAGES_MAX; i++) {
		if (bpf_skb_load_bytes(skb, at, &len, 2))
			return 0;
		end = at + 2 + bpf_ntohs(len);
		if (end > query->end || !weigh_message(skb, query, at + 2, end))
			return 0;
		if (end == query->end)
			return 1;
		at = end;
	}
	return 0;
}

/* Verified for itself. */
__noinline int read_queries(struct __sk_buff *skb, struct query *query, __u32 flow)
{
	if (!query || query->is_cut)
		return 0;
	if (query->protocol == IPPROTO_UDP)
		return weigh_message(skb, query, query->payload, query->end);
	return flow == FLOW_WHOLE && weigh_segment(skb, query);
}

/* ---- What is told ----------------------------------------------------------------------------------------------------- */

static __always_inline void fill_query(struct __sk_buff *skb, struct query_event *event, const struct query *query)
{
	__u64 more = query->name_bytes - 1; /* than one byte; so the verifier sees that it is not nothing */

	event->generation = query->generation;
	event->outcome = unpacked(query->outcome);
	event->family = query->family;
	event->protocol = query->protocol;
	event->pad = 0;
	__builtin_memset(event->addr, 0, sizeof(event->addr));
	if (query->family == AF_INET)
		bpf_skb_load_bytes(skb, 16, event->addr, 4);
	else
		bpf_skb_load_bytes(skb, 24, event->addr, 16);
	event->name_bytes = 0;
	barrier_var(more);
	more &= sizeof(event->name) - 1;
	if (query->name_bytes && !bpf_skb_load_bytes(skb, query->name_at, event->name, more + 1))
		event->name_bytes = query->name_bytes;
}

/* A retransmission, or what a queue had held back, is sent while another task runs. */
static __always_inline int is_current(struct task_struct *task, const struct query *query)
{
	return query->who.tgid && BPF_CORE_READ(task, tgid) == (int)query->who.tgid;
}

/* ``actor`` NULL: not known. Verified for itself. */
__noinline int tell_query(struct __sk_buff *skb, const struct query *query, const struct actor *actor)
{
	struct attempt attempt = {.operation = ON_QUERY};
	struct task_struct *task = (void *)bpf_get_current_task();
	struct query_event *event;
	struct file *exe = NULL;
	__u32 repeats, rule;
	__u64 suppressed;

	if (!query)
		return 0;
	rule = query->outcome;
	attempt.port = query->protocol;
	__builtin_memcpy(attempt.addr, &query->hash, sizeof(query->hash));
	repeats = count_repeat(&attempt, query->who.tgid, query->generation, rule);
	if (repeats == TOLD_LATELY)
		return 0;
	suppressed = take_token(query->generation, rule, unpacked(query->outcome).verdict, repeats);
	if (suppressed == OVER_RATE) {
		count(COUNT_SUPPRESSED);
		return 0;
	}
	event = bpf_ringbuf_reserve(&events, sizeof(*event), 0);
	if (!event) {
		count_lost(query->generation, rule, 1 + repeats);
		return 0;
	}
	if (actor)
		event->actor = *actor;
	else
		__builtin_memset(&event->actor, 0, sizeof(event->actor));
	event->actor.mono_ns = bpf_ktime_get_ns();
	event->repeats = repeats;
	event->suppressed = suppressed;
	fill_query(skb, event, query);
	if (is_current(task, query))
		exe = BPF_CORE_READ(task, mm, exe_file);
	event->exe_used = exe ? event_names(event->exe, &exe->f_path) : -1;
	bpf_ringbuf_submit(event, 0);
	return 0;
}

/* ---- Hook ------------------------------------------------------------------------------------------------------------- */

/* Sockets of the kernel are its own business, but for those that work for a program. */
static __always_inline int is_of_kernel(struct __sk_buff *skb)
{
	struct sk_buff *packet = (void *)skb;
	struct sock *sk = BPF_CORE_READ(packet, sk);
	struct tcp_sock *tcp = (void *)sk;

	if (!sk || !BPF_CORE_READ_BITFIELD_PROBED(sk, sk_kern_sock))
		return !sk;
	return BPF_CORE_READ(sk, sk_protocol) != IPPROTO_TCP || BPF_CORE_READ(sk, sk_type) != SOCK_STREAM ||
	       !bpf_core_field_exists(tcp->is_mptcp) || !BPF_CORE_READ(tcp, is_mptcp);
}

SEC("cgroup_skb/egress") int egress_query(struct __sk_buff *skb)
{
	struct query query = {.copy = active_copy(), .who.program.class = subject_in(UNKNOWN_CLASS, UNKNOWN_PROFILE)};
	const struct subject_head *head = subject_head(query.copy);
	struct asker *asker = NULL;
	struct bpf_sock *sk;
	__u32 flow;
	int block;

	if (!head || !head->dns || !find_payload(skb, &query) || is_of_kernel(skb))
		return SEND;
	query.generation = head->generation;
	query.who.program.generation = head->generation;
	sk = skb->sk ? bpf_sk_fullsock(skb->sk) : NULL;
	if (sk)
		asker = bpf_sk_storage_get(&askers, sk, 0, 0);
	if (asker) {
		bpf_spin_lock(&asker->lock);
		query.who = asker->who;
		bpf_spin_unlock(&asker->lock);
		/* A connection of no use yet has no unread beginning. */
		if (query.protocol == IPPROTO_TCP && query.flags & TCP_SYN && sk->protocol == IPPROTO_TCP)
			asker->flow = FLOW_WHOLE;
	}
	if (query.who.exempt || (query.protocol == IPPROTO_TCP && query.payload >= query.end))
		return SEND;
	count(COUNT_DECISIONS);
	flow = asker ? asker->flow : FLOW_UNKNOWN;
	if (!read_queries(skb, &query, flow)) {
		weigh(&query, head->unreadable, NULL);
		if (asker && unpacked(query.outcome).verdict != VERDICT_BLOCK)
			asker->flow = FLOW_BROKEN;
	}
	if (unpacked(query.outcome).verdict < VERDICT_AUDIT)
		return SEND;
	block = unpacked(query.outcome).verdict == VERDICT_BLOCK;
	count(block ? COUNT_BLOCKS : COUNT_AUDITS);
	if (block && asker && query.protocol == IPPROTO_TCP) {
		if (asker->refused == (query.hash ?: 1))
			return DROP;
		asker->refused = query.hash ?: 1;
	}
	tell_query(skb, &query, asker ? &asker->actor : NULL);
	return block ? DROP : SEND;
}

char LICENSE[] SEC("license") = "GPL";

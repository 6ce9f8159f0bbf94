/* SPDX-License-Identifier: GPL-2.0-only */
/*
 * DNS questions in an outgoing packet, and the tables of domains.
 *
 * A name is hashed like a path (path_hash.h) whose last component is its first label: one walk gives the hash of the name, taking
 * off the first label and dividing by the factor that of the domain above. Labels are hashed in lower case. The first domain of the
 * table that is found so is the longest. Two walks over at most 127 labels, whatever the number of rules.
 *
 * Unreadable: a message that does not hold the questions that it announces, one that asks for nothing or for more than
 * QUESTIONS_MAX names, a label of more than 63 bytes or a pointer (there is nothing before a question that it could point to).
 */
#ifndef GARRISON_DNS_MESSAGE_H
#define GARRISON_DNS_MESSAGE_H

#include "subject_rules.h"

#include <bpf/bpf_endian.h>

#define DOMAIN_MAX_BYTES 255 /* RFC 1035 2.3.4: with the lengths and the root's */
#define LABELS_MAX 128
#define LABEL_MAX_BYTES 63
#define LABEL_WORDS 8
#define QUESTIONS_MAX 4 /* a server answers one (RFC 9619) */
#define DNS_HEADER_BYTES 12
#define QUESTION_TAIL_BYTES 4 /* type and class */

struct domain_sets {
	__u32 exact, below;
};
_Static_assert(sizeof(struct domain_sets) == 8, "struct domain_sets");

/* Hash of a domain that a rule names -> sets of rules about it and about what is below. */
TWO_COPIES(domains, BPF_MAP_TYPE_HASH, 0, sizeof(__u64), sizeof(struct domain_sets));

struct label {
	__u64 words[LABEL_WORDS]; /* zero-padded */
};

/* A walk over the labels of a name. ``skb`` and ``table`` are pointers, so they are not in what FORGET() may touch. */
struct name_walk {
	struct __sk_buff *skb;
	void *table;
	struct {
		__u64 sum;
		__u64 power;
		__u32 at;    /* of the next label, from the network header */
		__u32 end;   /* of the message */
		__u32 taken; /* labels */
		__u32 set;
		__u32 state;
		__u32 pad;
	} now;
};

enum { NAME_GOING, NAME_DONE, NAME_UNREADABLE };

/* Eight bytes at a time: 0x20 is set in those from A to Z. */
static __always_inline __u64 lower(__u64 word)
{
	__u64 low = word & 0x7f7f7f7f7f7f7f7fULL;
	__u64 from_a = low + 0x3f3f3f3f3f3f3f3fULL, after_z = low + 0x2525252525252525ULL;

	return word | ((from_a & ~after_z & ~word & 0x8080808080808080ULL) >> 2);
}

/* As hash_name() of path_hash.h. */
static __always_inline __u64 hash_label(const struct label *label, __u32 len)
{
	struct sip s;
	int word;

	sip_start(&s);
#pragma unroll
	for (word = 0; word < CHUNK_WORDS; word++)
		sip_word(&s, lower(label->words[word]));
	if (len > CHUNK_BYTES) {
#pragma unroll
		for (word = CHUNK_WORDS; word < LABEL_WORDS; word++)
			sip_word(&s, lower(label->words[word]));
	}
	sip_word(&s, len);
	return sip_end(&s) ?: 1;
}

/* Takes the next label. Returns its hash, or 0 at the end and when there is none to read; ``state`` says which. */
static __always_inline __u64 take_label(struct name_walk *walk)
{
	__u32 at = walk->now.at;
	struct label label = {};
	__u64 more;
	__u8 len;

	walk->now.state = NAME_UNREADABLE;
	if (at >= walk->now.end || bpf_skb_load_bytes(walk->skb, at, &len, 1) || len > LABEL_MAX_BYTES)
		return 0;
	walk->now.at = at + 1 + len;
	if (!len) {
		walk->now.state = NAME_DONE;
		return 0;
	}
	more = len - 1; /* than one byte; so the verifier sees that it is not nothing */
	barrier_var(more);
	more &= LABEL_MAX_BYTES;
	if (walk->now.at >= walk->now.end || bpf_skb_load_bytes(walk->skb, at + 1, &label, more + 1))
		return 0;
	walk->now.state = NAME_GOING;
	return hash_label(&label, len);
}

static long sum_label(__u32 index, void *context)
{
	struct name_walk *walk = context;
	__u64 label = take_label(walk);

	if (!label)
		return 1;
	walk->now.sum += label * walk->now.power;
	walk->now.power *= hash_factor;
	return 0;
}

static long find_domain(__u32 index, void *context)
{
	struct name_walk *walk = context;
	__u64 sum = walk->now.sum, label;
	const struct domain_sets *sets = bpf_map_lookup_elem(walk->table, &sum);

	if (sets) {
		walk->now.set = walk->now.taken ? sets->below : sets->exact;
		return 1;
	}
	label = take_label(walk);
	if (!label)
		return 1;
	walk->now.sum = (walk->now.sum - label) * hash_inverse;
	walk->now.taken++;
	return 0;
}

/* A name in a packet, and what the tables say of it. */
struct question {
	__u64 hash;
	__u32 at;  /* from the network header */
	__u32 end; /* of the message */
	__u32 len; /* of the name; 0: it cannot be read */
	__u32 set;
	__u32 copy;
	__u32 pad;
};

/* Fills ``question``. Verified for itself. */
__noinline int read_name(struct __sk_buff *skb, struct question *question)
{
	struct name_walk walk = {.skb = skb};
	__u32 copy;

	if (!question)
		return 0;
	question->len = 0;
	copy = question->copy;
	walk.table = bpf_map_lookup_elem(&domains, &copy);
	if (!walk.table)
		return 0;
	walk.now.power = 1;
	walk.now.at = question->at;
	walk.now.end = question->end;
	FORGET(walk.now);
	bpf_loop(LABELS_MAX, sum_label, &walk, 0);
	if (walk.now.state != NAME_DONE || walk.now.at - question->at > DOMAIN_MAX_BYTES)
		return 0;
	question->len = walk.now.at - question->at;
	question->hash = walk.now.sum;
	walk.now.at = question->at;
	walk.now.taken = 0;
	walk.now.set = NO_SET;
	FORGET(walk.now);
	bpf_loop(LABELS_MAX, find_domain, &walk, 0);
	question->set = walk.now.set;
	return 0;
}

#endif

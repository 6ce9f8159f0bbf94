/* SPDX-License-Identifier: GPL-2.0-only */
/*
 * Paths as keyed hashes, to look rules up with: of each directory from the root down, and of the program in it.
 * garrison.minion.enforcers.cgroup_net.pathhash computes the same; a test compares them.
 */
#ifndef GARRISON_PATH_HASH_H
#define GARRISON_PATH_HASH_H

#include "path_walk.h"

#define WALK_STEPS 24 /* components and mounts; a program has 512 bytes of stack, and one hash of each lies there */
#define CHUNK_WORDS 4 /* a name is read 32 bytes at a time */
#define CHUNK_BYTES (CHUNK_WORDS * 8)

/*
 * SipHash-1-3 with padding of our own: a name is zero-padded to whole chunks, then its length follows. Keyed at load with random
 * bytes, so that nobody can make a path whose hash is another's.
 */
const volatile __u64 hash_key[2] = {};

struct sip {
	__u64 a, b, c, d;
};

#define ROTL(x, n) (((x) << (n)) | ((x) >> (64 - (n))))

static __always_inline void sip_round(struct sip *s)
{
	s->a += s->b;
	s->b = ROTL(s->b, 13) ^ s->a;
	s->a = ROTL(s->a, 32);
	s->c += s->d;
	s->d = ROTL(s->d, 16) ^ s->c;
	s->a += s->d;
	s->d = ROTL(s->d, 21) ^ s->a;
	s->c += s->b;
	s->b = ROTL(s->b, 17) ^ s->c;
	s->c = ROTL(s->c, 32);
}

static __always_inline void sip_start(struct sip *s)
{
	s->a = hash_key[0] ^ 0x736f6d6570736575ULL;
	s->b = hash_key[1] ^ 0x646f72616e646f6dULL;
	s->c = hash_key[0] ^ 0x6c7967656e657261ULL;
	s->d = hash_key[1] ^ 0x7465646279746573ULL;
}

static __always_inline void sip_word(struct sip *s, __u64 word)
{
	s->d ^= word;
	sip_round(s);
	s->a ^= word;
}

static __always_inline __u64 sip_end(struct sip *s)
{
	s->c ^= 0xff;
	sip_round(s);
	sip_round(s);
	sip_round(s);
	return s->a ^ s->b ^ s->c ^ s->d;
}

/*
 * The two functions below are global on purpose: the verifier then looks at each once, not again for each step of a walk.
 */

/* Hash of a path: of the hash of its directory (0 for the root) and of its last component. */
__noinline __u64 hash_path(__u64 directory, __u64 component)
{
	struct sip s;

	sip_start(&s);
	sip_word(&s, directory);
	sip_word(&s, component);
	return sip_end(&s);
}

/* Hash of the name of ``len`` bytes at the kernel address ``name``; 0 when it cannot be read. */
__noinline __u64 hash_name(__u64 name, __u64 len)
{
	__u64 chunk[CHUNK_WORDS], off, n;
	struct sip s;
	int word;

	if (!len || len >= NAME_MAX_BYTES)
		return 0;
	sip_start(&s);
	for (off = 0; off < NAME_MAX_BYTES; off += CHUNK_BYTES) {
		if (off >= len)
			break;
		n = len - off;
		if (n > CHUNK_BYTES)
			n = CHUNK_BYTES;
		barrier_var(n); /* the verifier must see the check below on the register that is used */
		__builtin_memset(chunk, 0, sizeof(chunk));
		if (n > CHUNK_BYTES || bpf_probe_read_kernel(chunk, n, (void *)(name + off)))
			return 0;
#pragma unroll
		for (word = 0; word < CHUNK_WORDS; word++)
			sip_word(&s, chunk[word]);
	}
	sip_word(&s, len);
	return sip_end(&s) ?: 1;
}

/*
 * A walk that keeps one hash of each step, the last component first; 0 where a step only crossed a mount. The slot is the step's
 * number, which the verifier does not know: so it looks at one step and not at all their combinations.
 */
struct hash_walk {
	struct walk at;
	__u64 leaf; /* slot of the last component */
	__u64 step[WALK_STEPS];
};

static long hash_step(__u64 index, void *context)
{
	struct hash_walk *walk = context;
	__u64 hash;

	if (index >= WALK_STEPS || !walk_step(&walk->at))
		return 1;
	if (!walk->at.name)
		return 0;
	hash = hash_name((__u64)walk->at.name, walk->at.len);
	if (!hash) {
		walk->at.state = WALK_UNRESOLVED;
		return 1;
	}
	if (walk->leaf >= WALK_STEPS)
		walk->leaf = index;
	walk->step[index] = hash;
	return 0;
}

/* Hash the components of ``path``. Returns whether it was resolved. */
static __always_inline int walk_hashes(struct hash_walk *walk, struct path *path)
{
	__builtin_memset(walk, 0, sizeof(*walk));
	walk->leaf = WALK_STEPS;
	walk_start(&walk->at, path);
	if (walk->at.state == WALK_GOING)
		bpf_loop(WALK_STEPS, hash_step, walk, 0);
	return walk->at.state == WALK_ROOT;
}

#endif

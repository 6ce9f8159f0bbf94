/* SPDX-License-Identifier: GPL-2.0-only */
/*
 * Paths as keyed hashes, to look rules up with. With the hashes of its components, the last one c0, a path is
 *     c0 + c1 * factor + c2 * factor^2 + ...   modulo 2^64
 * so that one walk up gives the hash of the path, and taking off c0 and dividing by the factor gives that of its directory: no
 * step has to be remembered, and depth costs no stack. The root is 0.
 * garrison.bpf.pathhash computes the same; a test compares them.
 */
#ifndef GARRISON_PATH_HASH_H
#define GARRISON_PATH_HASH_H

#include "path_walk.h"

#define WALK_STEPS 512 /* components and mounts: deeper programs count as unresolved */
#define CHUNK_WORDS 4 /* a name is read 32 bytes at a time */
#define CHUNK_BYTES (CHUNK_WORDS * 8)

/*
 * SipHash-1-3 with padding of our own: a name is zero-padded to whole chunks, then its length follows. Keyed at load with random
 * bytes, so that nobody can make a path whose hash is another's.
 */
const volatile __u64 hash_key[2] = {};
const volatile __u64 hash_factor = 1;  /* odd */
const volatile __u64 hash_inverse = 1; /* hash_factor * hash_inverse = 1 modulo 2^64 */

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
 * Hash of the name of ``len`` bytes at the kernel address ``name``; 0 when it cannot be read.
 * Global on purpose: the verifier then looks at it once, not again for each step of a walk.
 */
__noinline __u64 hash_name(__u64 name, __u64 len)
{
	__u64 chunk[CHUNK_WORDS], off = 0, n;
	struct sip s;
	int word;

	if (!len || len >= NAME_MAX_BYTES)
		return 0;
	sip_start(&s);
	do {
		barrier_var(off); /* one register less to keep than what the compiler would make of it */
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
		off += CHUNK_BYTES;
	} while (off < len && off < NAME_MAX_BYTES);
	sip_word(&s, len);
	return sip_end(&s) ?: 1;
}

/* A walk that adds up the hash of a path. */
struct hash_walk {
	struct walk at;
	__u64 sum;
	__u64 power; /* hash_factor to the number of components so far */
};

/* One step up, and the hash of the component it left behind; 0 when it only crossed a mount. Returns whether to go on. */
static __always_inline int hash_step(struct walk *at, __u64 *component)
{
	*component = 0;
	if (!walk_step(at))
		return 0;
	if (!at->name)
		return 1;
	*component = hash_name((__u64)at->name, at->len);
	if (*component)
		return 1;
	at->state = WALK_UNRESOLVED;
	return 0;
}

static long add_step(__u32 index, void *context)
{
	struct hash_walk *walk = context;
	__u64 component;

	if (!hash_step(&walk->at, &component))
		return 1;
	if (component) {
		walk->sum += component * walk->power;
		walk->power *= hash_factor;
	}
	return 0;
}

/* Hash ``path`` into ``sum``. Returns whether it was resolved. */
static __always_inline int hash_path(struct path *path, __u64 *sum)
{
	struct hash_walk walk = {.power = 1};

	walk_start(&walk.at, path);
	FORGET(walk);
	if (walk.at.state == WALK_GOING)
		bpf_loop(WALK_STEPS, add_step, &walk, 0);
	*sum = walk.sum;
	return walk.at.state == WALK_ROOT;
}

#endif

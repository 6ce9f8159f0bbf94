/* SPDX-License-Identifier: Apache-2.0 */
/* The compiled rules: their binary form, and the decision over it.
 *
 * Written by table.py, which must agree with every struct here; the unit tests compare the decisions of both sides.
 * All numbers are little endian. Offsets count bytes from the start of the table, except that "words" offsets count
 * 32-bit words in the words section. A table is checked completely before its first use; nothing is checked after.
 * Owns: format, checking, meaning (equal to common/policy/match.py). Does not own: where facts about a process come from.
 */
#ifndef GARRISON_TABLE_H
#define GARRISON_TABLE_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#define TABLE_MAGIC "GARRFAN"
#define TABLE_VERSION 1u
#define TABLE_MAX_BYTES (256u << 20)
#define NONE UINT32_MAX
#define PATH_BYTES 4096u /* linux/limits.h PATH_MAX; longer paths count as unknown */

enum entity { PROCESS = 0, FILE_ENTITY = 1, ENTITIES = 2 };
enum verdict { ALLOW = 0, AUDIT = 1, BLOCK = 2 };

enum rule_flag {
	RULE_OWNER_ONLY = 1,
	RULE_READ_ONLY = 2,
	RULE_NO_TTY = 4,
	RULE_ENFORCED = 8, /* mode is enforce */
};

/* What a slot's key is. Kinds up to KIND_INODE exist once for each entity: kind | entity << 8. */
enum kind {
	KIND_EMPTY = 0,
	KIND_EXACT = 1,	     /* key: path; list: count, rules */
	KIND_DIRECTORY = 2,  /* key: path with final slash; list: direct, recursive, globs, then the items in that order */
	KIND_NAME = 3,	     /* key: basename; list: count, rules */
	KIND_INODE = 4,	     /* key: device, inode (2 x u64); list: count, rules */
	KIND_SOURCE = 5,     /* key: path; list: count, source sets */
	KIND_SOURCE_DIR = 6, /* key: path with final slash; list: direct, recursive, then source sets */
	KIND_LOADER = 7,     /* key: device, inode of a dynamic loader; list: none */
};

struct section {
	uint32_t offset, count;
};

struct entity_head {
	uint32_t blocks;	 /* words: count, all block rules: they may apply to a path that cannot be told */
	uint32_t any_allow;	 /* smallest rule without sources that makes an allow-list, or NONE */
	uint32_t enforced_allow; /* the same among those in mode enforce */
	uint8_t posture_block;
	uint8_t has_sources; /* some rule asks for the acting program */
	uint8_t pad[2];
};

struct rule {
	uint8_t entity, verdict, flags, pad;
	uint32_t set;	 /* source set, 0 for any program */
	uint32_t policy; /* number of its policy */
	uint32_t args;	 /* words: count, then (offset in bytes, length) of each; NONE when the rule does not list arguments */
};

struct source_set {
	uint32_t any_allow[ENTITIES], enforced_allow[ENTITIES]; /* as in entity_head, among rules with this set */
};

struct slot {
	uint32_t kind, key, key_len, list; /* key: offset in bytes; list: offset in words */
};

struct glob {
	uint32_t rule, program, words, start; /* program over the path from byte start on */
};

struct mark {
	uint32_t path, path_len; /* offset in bytes; NUL follows */
	uint32_t flags;		 /* MARK_* */
	uint32_t pad;
	uint64_t mask; /* FAN_*_PERM */
};

enum mark_flag { MARK_FILESYSTEM = 1, MARK_OPTIONAL = 2 };

struct table_header {
	char magic[8];
	uint32_t version, size, generation, policies;
	struct section rules, sets, slots, globs, marks, words, bytes; /* slots: a power of two, at least one empty */
	struct entity_head entities[ENTITIES];
};

_Static_assert(sizeof(struct entity_head) == 16, "table.py packs it");
_Static_assert(sizeof(struct rule) == 16, "table.py packs it");
_Static_assert(sizeof(struct source_set) == 16, "table.py packs it");
_Static_assert(sizeof(struct slot) == 16, "table.py packs it");
_Static_assert(sizeof(struct glob) == 16, "table.py packs it");
_Static_assert(sizeof(struct mark) == 24, "table.py packs it");
_Static_assert(sizeof(struct table_header) == 112, "table.py packs it");

/* A glob is a program of words, one instruction a word (opcode in the top byte) but for classes, run over code points. */
enum glob_op {
	GLOB_END = 0,
	GLOB_LITERAL = 1, /* low 24 bits: the code point */
	GLOB_ONE = 2,	  /* ? */
	GLOB_STAR = 3,	  /* any run without a slash */
	GLOB_ANY = 4,	  /* any run */
	GLOB_SKIP = 5,	  /* either go on, or jump over so many words */
	GLOB_CLASS = 6,	  /* low 16 bits: ranges that follow, two words each; bit 23: negated; never matches a slash */
};
#define GLOB_NEGATED (1u << 23)

/* A table in use, with the scratch memory of its decisions. */
struct table {
	const uint8_t *base;
	const struct table_header *head;
	const struct rule *rules;
	const struct source_set *sets;
	const struct slot *slots;
	const struct glob *globs;
	const struct mark *marks;
	const uint32_t *words;
	uint32_t stamp;		       /* number of the decision: scratch entries equal to it are set */
	uint32_t *seen, *set_seen;     /* by rule, by source set */
	uint32_t *policy_seen;	       /* by policy: exempt in this decision */
	uint32_t *candidates, *active; /* rules of this decision; source sets of this decision */
	uint32_t n_candidates, n_active;
	uint32_t *now, *next, *state_seen; /* glob states */
	uint32_t state_stamp, glob_words_max;
};

struct arguments {
	uint32_t count;
	const char *const *values;
};

/* Facts about an operation, asked for only when a rule needs them. A fact that cannot be told counts against the operation. */
struct facts {
	void *context;
	const char *(*source)(void *context, uint32_t *len); /* NULL when unknown */
	bool (*is_owner)(void *context);		     /* false when unknown */
	bool (*writes)(void *context);			     /* true when unknown */
	bool (*tty)(void *context);			     /* true when unknown */
	const struct arguments *(*args)(void *context);	     /* NULL when unknown */
};

struct operation {
	enum entity entity;
	const char *path; /* resolved; length 0 when unknown */
	uint32_t path_len;
	uint64_t device, inode; /* of the target; inode 0 when unknown */
	const struct facts *facts;
};

struct decision {
	enum verdict verdict;
	uint32_t rule; /* NONE when no rule spoke */
	bool by_posture;
};

/* Check size bytes at base and make ready to decide. Returns NULL, or what is wrong; the table must outlive t. */
const char *table_open(struct table *t, const void *base, size_t size);
void table_close(struct table *t);

/* Make another of the same rules, so that two threads can decide at once. Returns NULL, or what is wrong. */
const char *table_share(struct table *t, const struct table *of);

struct decision table_decide(struct table *t, const struct operation *op);

/* Whether the file is a dynamic loader, opened for execution on behalf of the program that names it. */
bool table_is_loader(const struct table *t, uint64_t device, uint64_t inode);

static inline const char *table_bytes(const struct table *t, uint32_t offset)
{
	return (const char *)t->base + offset;
}

#endif

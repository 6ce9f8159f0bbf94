/* SPDX-License-Identifier: Apache-2.0 */
/* Decisions over a checked table: one hash look-up for the path, one for each of its directories, one for its name. The cost
 * depends on the length of the path and on how many rules name it, not on how many rules there are. */
#include "table.h"

#include <string.h>

#include "glob.h"

/* FNV-1a: keys come from the author of the policy, so nobody else can choose long probe sequences. */
#define FNV_SEED 0xcbf29ce484222325ull
#define FNV_PRIME 0x100000001b3ull

static uint64_t fnv(uint64_t hash, const char *bytes, uint32_t len)
{
	for (uint32_t i = 0; i < len; i++)
		hash = (hash ^ (uint8_t)bytes[i]) * FNV_PRIME;
	return hash;
}

/* Returns the list of a key, or NULL. hash is the FNV-1a of the key. */
static const uint32_t *find(const struct table *t, uint32_t kind, uint64_t hash, const char *key, uint32_t len)
{
	uint32_t mask = t->head->slots.count - 1;

	hash = (hash ^ kind) * FNV_PRIME;
	for (uint32_t i = (uint32_t)(hash >> 32) & mask; t->slots[i].kind != KIND_EMPTY; i = (i + 1) & mask) {
		const struct slot *s = &t->slots[i];

		if (s->kind == kind && s->key_len == len && memcmp(t->base + s->key, key, len) == 0)
			return t->words + s->list;
	}
	return NULL;
}

static uint32_t kind_of(enum kind kind, enum entity entity)
{
	return (uint32_t)kind | (uint32_t)entity << 8;
}

static void inode_key(char key[16], uint64_t device, uint64_t inode)
{
	memcpy(key, &device, 8);
	memcpy(key + 8, &inode, 8);
}

bool table_is_loader(const struct table *t, uint64_t device, uint64_t inode)
{
	char key[16];

	inode_key(key, device, inode);
	return find(t, KIND_LOADER, fnv(FNV_SEED, key, sizeof(key)), key, sizeof(key)) != NULL;
}

/* ---- Which rules name the target ---- */

static void add_candidate(struct table *t, uint32_t rule)
{
	if (t->seen[rule] == t->stamp)
		return;
	t->seen[rule] = t->stamp;
	t->candidates[t->n_candidates++] = rule;
}

static void add_list(struct table *t, const uint32_t *list)
{
	if (list)
		for (uint32_t i = 0; i < list[0]; i++)
			add_candidate(t, list[1 + i]);
}

/* end: where the name of the directory ends in the path; last: where the path's last component begins. */
static void add_directory(struct table *t, const uint32_t *list, uint32_t end, uint32_t last, const struct operation *op)
{
	bool inside = end < op->path_len; /* a directory's rules are about what is in it, globs may match itself */
	const uint32_t *item;

	if (!list)
		return;
	item = list + 3;
	for (uint32_t i = 0; i < list[0]; i++, item++)
		if (inside && end == last)
			add_candidate(t, *item);
	for (uint32_t i = 0; i < list[1]; i++, item++)
		if (inside)
			add_candidate(t, *item);
	for (uint32_t i = 0; i < list[2]; i++, item++) {
		const struct glob *g = &t->globs[*item];

		if (t->seen[g->rule] != t->stamp && g->start <= op->path_len &&
		    glob_run(t, g, op->path + g->start, op->path_len - g->start))
			add_candidate(t, g->rule);
	}
}

static void add_path(struct table *t, const struct operation *op)
{
	uint32_t kind = kind_of(KIND_DIRECTORY, op->entity), last = 0;
	uint64_t hash = FNV_SEED;

	for (uint32_t i = 0; i < op->path_len; i++)
		if (op->path[i] == '/')
			last = i + 1;
	for (uint32_t i = 0; i < op->path_len; i++) {
		hash = fnv(hash, op->path + i, 1);
		if (op->path[i] == '/')
			add_directory(t, find(t, kind, hash, op->path, i + 1), i + 1, last, op);
	}
	add_list(t, find(t, kind_of(KIND_EXACT, op->entity), hash, op->path, op->path_len));
	add_list(t, find(t, kind_of(KIND_NAME, op->entity), fnv(FNV_SEED, op->path + last, op->path_len - last), op->path + last,
			 op->path_len - last));
}

static void collect(struct table *t, const struct operation *op)
{
	char key[16];

	t->n_candidates = 0;
	if (op->path_len == 0)
		add_list(t, t->words + t->head->entities[op->entity].blocks);
	else
		add_path(t, op);
	if (op->inode == 0)
		return;
	inode_key(key, op->device, op->inode);
	add_list(t, find(t, kind_of(KIND_INODE, op->entity), fnv(FNV_SEED, key, sizeof(key)), key, sizeof(key)));
}

/* ---- Which source sets the acting program is in ---- */

static void activate(struct table *t, uint32_t set)
{
	if (t->set_seen[set] == t->stamp)
		return;
	t->set_seen[set] = t->stamp;
	t->active[t->n_active++] = set;
}

static void match_sources(struct table *t, const char *program, uint32_t len)
{
	uint64_t hash = FNV_SEED;
	const uint32_t *list;
	uint32_t last = 0;

	t->n_active = 0;
	for (uint32_t i = 0; i < len; i++)
		if (program[i] == '/')
			last = i + 1;
	for (uint32_t i = 0; i < len; i++) {
		hash = fnv(hash, program + i, 1);
		if (program[i] != '/' || i + 1 >= len)
			continue;
		list = find(t, KIND_SOURCE_DIR, hash, program, i + 1);
		if (!list)
			continue;
		for (uint32_t n = 0; n < list[0] && i + 1 == last; n++)
			activate(t, list[2 + n]);
		for (uint32_t n = 0; n < list[1]; n++)
			activate(t, list[2 + list[0] + n]);
	}
	list = find(t, KIND_SOURCE, hash, program, len);
	for (uint32_t n = 0; list && n < list[0]; n++)
		activate(t, list[1 + n]);
}

/* ---- What they say: common/policy/match.py, decide() ---- */

static bool applies(const struct table *t, const struct rule *r, bool source_known)
{
	if (r->set == 0)
		return true;
	return source_known ? t->set_seen[r->set] == t->stamp : r->verdict != ALLOW;
}

static bool breached(const struct rule *r, const struct operation *op)
{
	const struct facts *f = op->facts;

	return ((r->flags & RULE_OWNER_ONLY) && !f->is_owner(f->context)) ||
	       ((r->flags & RULE_READ_ONLY) && f->writes(f->context));
}

static bool listed(const struct table *t, const uint32_t *list, const char *value)
{
	size_t len = strlen(value);

	for (uint32_t i = 0; i < list[0]; i++)
		if (list[2 + 2 * i] == len && memcmp(table_bytes(t, list[1 + 2 * i]), value, len) == 0)
			return true;
	return false;
}

static bool args_listed(const struct table *t, const struct rule *r, const struct operation *op)
{
	const struct arguments *args = op->facts->args(op->facts->context);

	if (!args || args->count == 0) /* no argument at all is not listed either */
		return false;
	for (uint32_t i = 0; i < args->count; i++)
		if (!listed(t, t->words + r->args, args->values[i]))
			return false;
	return true;
}

static bool fires(const struct table *t, const struct rule *r, const struct operation *op)
{
	if ((r->flags & (RULE_OWNER_ONLY | RULE_READ_ONLY)) && !breached(r, op))
		return false;
	if ((r->flags & RULE_NO_TTY) && !op->facts->tty(op->facts->context))
		return false;
	return r->args == NONE || !args_listed(t, r, op);
}

static bool kept(const struct table *t, const struct rule *r, const struct operation *op)
{
	if (breached(r, op) || ((r->flags & RULE_NO_TTY) && op->facts->tty(op->facts->context)))
		return false;
	return r->args == NONE || args_listed(t, r, op);
}

static uint32_t least(uint32_t a, uint32_t b)
{
	return a < b ? a : b;
}

/* Rules are numbered in the order of their ids, so the smallest number is the smallest id. */
static struct decision weigh(struct table *t, const struct operation *op, bool source_known)
{
	const struct entity_head *e = &t->head->entities[op->entity];
	uint32_t block = NONE, audit = NONE, granted = NONE, any = e->any_allow, enforced = e->enforced_allow;

	for (uint32_t i = 0; i < t->n_candidates; i++) {
		const struct rule *r = &t->rules[t->candidates[i]];

		if (r->verdict != ALLOW || !applies(t, r, source_known) || !kept(t, r, op))
			continue;
		granted = least(granted, t->candidates[i]);
		if (r->set != 0)
			t->policy_seen[r->policy] = t->stamp;
	}
	for (uint32_t i = 0; i < t->n_candidates; i++) {
		const struct rule *r = &t->rules[t->candidates[i]];

		if (r->verdict == ALLOW || !applies(t, r, source_known) || (r->set == 0 && t->policy_seen[r->policy] == t->stamp) ||
		    !fires(t, r, op))
			continue;
		audit = least(audit, t->candidates[i]);
		if (r->verdict == BLOCK && (r->flags & RULE_ENFORCED))
			block = least(block, t->candidates[i]);
	}
	if (block != NONE)
		return (struct decision){BLOCK, block, false};
	if (audit != NONE)
		return (struct decision){AUDIT, audit, false};
	for (uint32_t i = 0; source_known && i < t->n_active; i++) {
		any = least(any, t->sets[t->active[i]].any_allow[op->entity]);
		enforced = least(enforced, t->sets[t->active[i]].enforced_allow[op->entity]);
	}
	if (granted != NONE || any == NONE)
		return (struct decision){ALLOW, granted, false};
	if (e->posture_block && enforced != NONE)
		return (struct decision){BLOCK, enforced, true};
	return (struct decision){AUDIT, any, true};
}

struct decision table_decide(struct table *t, const struct operation *op)
{
	bool source_known = false;

	if (++t->stamp == 0) { /* wrapped: old stamps could be taken for new ones */
		memset(t->seen, 0, sizeof(uint32_t) * t->head->rules.count);
		memset(t->set_seen, 0, sizeof(uint32_t) * t->head->sets.count);
		memset(t->policy_seen, 0, sizeof(uint32_t) * t->head->policies);
		t->stamp = 1;
	}
	collect(t, op);
	t->n_active = 0;
	if (t->head->entities[op->entity].has_sources) {
		uint32_t len = 0;
		const char *program = op->facts->source(op->facts->context, &len);

		source_known = program != NULL && len > 0;
		if (source_known)
			match_sources(t, program, len);
	}
	return weigh(t, op, source_known);
}

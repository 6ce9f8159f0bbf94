/* SPDX-License-Identifier: Apache-2.0 */
/* Checks a table before its first use: every offset, count and program in it lies inside it. */
#include <stdlib.h>
#include <string.h>

#include "glob.h"
#include "table.h"

static bool section_fits(const struct table_header *h, const struct section *s, size_t item)
{
	return s->offset % 8 == 0 && s->offset >= sizeof(*h) && s->offset <= h->size && s->count <= (h->size - s->offset) / item;
}

static bool bytes_fit(const struct table_header *h, uint32_t offset, uint32_t len)
{
	const struct section *b = &h->bytes;

	return offset >= b->offset && offset - b->offset <= b->count && len <= b->count - (offset - b->offset);
}

/* Whether words at..at+need lie in the section. */
static bool words_fit(const struct table_header *h, uint32_t at, uint64_t need)
{
	return at <= h->words.count && need <= h->words.count - at;
}

static bool items_below(const struct table *t, uint32_t at, uint32_t count, uint32_t limit)
{
	for (uint32_t i = 0; i < count; i++)
		if (t->words[at + i] >= limit)
			return false;
	return true;
}

/* A list that begins with its length. */
static bool list_fits(const struct table *t, uint32_t at, uint32_t limit)
{
	return words_fit(t->head, at, 1) && words_fit(t->head, at, 1ull + t->words[at]) &&
	       items_below(t, at + 1, t->words[at], limit);
}

static bool rule_or_none(const struct table *t, uint32_t rule)
{
	return rule == NONE || rule < t->head->rules.count;
}

static bool directory_fits(const struct table *t, uint32_t at)
{
	const uint32_t *list = t->words + at;

	if (!words_fit(t->head, at, 3) || !words_fit(t->head, at, 3ull + list[0] + list[1] + list[2]))
		return false;
	return items_below(t, at + 3, list[0] + list[1], t->head->rules.count) &&
	       items_below(t, at + 3 + list[0] + list[1], list[2], t->head->globs.count);
}

static bool source_directory_fits(const struct table *t, uint32_t at)
{
	const uint32_t *list = t->words + at;

	return words_fit(t->head, at, 2) && words_fit(t->head, at, 2ull + list[0] + list[1]) &&
	       items_below(t, at + 2, list[0] + list[1], t->head->sets.count);
}

static bool slot_fits(const struct table *t, const struct slot *s)
{
	if (s->kind == KIND_EMPTY)
		return true;
	if (!bytes_fit(t->head, s->key, s->key_len) || s->kind >> 8 >= ENTITIES)
		return false;
	switch (s->kind & 0xff) {
	case KIND_EXACT:
	case KIND_NAME:
	case KIND_INODE:
		return list_fits(t, s->list, t->head->rules.count);
	case KIND_DIRECTORY:
		return directory_fits(t, s->list);
	case KIND_SOURCE:
		return list_fits(t, s->list, t->head->sets.count);
	case KIND_SOURCE_DIR:
		return source_directory_fits(t, s->list);
	case KIND_LOADER:
		return s->list == 0;
	default:
		return false;
	}
}

static bool slots_fit(const struct table *t)
{
	const struct section *s = &t->head->slots;
	uint32_t empty = 0;

	if (s->count == 0 || (s->count & (s->count - 1)) != 0)
		return false;
	for (uint32_t i = 0; i < s->count; i++) {
		if (!slot_fits(t, &t->slots[i]))
			return false;
		empty += t->slots[i].kind == KIND_EMPTY;
	}
	return empty > 0; /* else a search for what is not there would not end */
}

static bool args_fit(const struct table *t, uint32_t at)
{
	if (!words_fit(t->head, at, 1) || !words_fit(t->head, at, 1 + 2ull * t->words[at]))
		return false;
	for (uint32_t i = 0; i < t->words[at]; i++)
		if (!bytes_fit(t->head, t->words[at + 1 + 2 * i], t->words[at + 2 + 2 * i]))
			return false;
	return true;
}

static bool rules_fit(const struct table *t)
{
	for (uint32_t i = 0; i < t->head->rules.count; i++) {
		const struct rule *r = &t->rules[i];

		if (r->entity >= ENTITIES || r->verdict > BLOCK || r->set >= t->head->sets.count ||
		    r->policy >= t->head->policies || (r->args != NONE && !args_fit(t, r->args)))
			return false;
	}
	for (uint32_t i = 0; i < t->head->sets.count; i++)
		for (int e = 0; e < ENTITIES; e++)
			if (!rule_or_none(t, t->sets[i].any_allow[e]) || !rule_or_none(t, t->sets[i].enforced_allow[e]))
				return false;
	for (int e = 0; e < ENTITIES; e++) {
		const struct entity_head *h = &t->head->entities[e];

		if (!list_fits(t, h->blocks, t->head->rules.count) || !rule_or_none(t, h->any_allow) ||
		    !rule_or_none(t, h->enforced_allow))
			return false;
	}
	return true;
}

static bool glob_fits(struct table *t, const struct glob *g)
{
	uint32_t used = 0, step = 0;

	if (g->rule >= t->head->rules.count || g->words == 0 || !words_fit(t->head, g->program, g->words))
		return false;
	for (; used < g->words; used += step) {
		step = glob_instruction_words(t->words[g->program + used], g->words - used);
		if (step == 0)
			return false;
		if (t->words[g->program + used] >> 24 == GLOB_SKIP && (t->words[g->program + used + 1] >> 24 != GLOB_LITERAL ||
								       t->words[g->program + used + 2] >> 24 != GLOB_ANY))
			return false;
	}
	if (g->words > t->glob_words_max)
		t->glob_words_max = g->words;
	return t->words[g->program + g->words - 1] >> 24 == GLOB_END && step == 1;
}

static bool marks_fit(const struct table *t)
{
	for (uint32_t i = 0; i < t->head->marks.count; i++) {
		const struct mark *m = &t->marks[i];

		if (m->path_len >= PATH_BYTES || !bytes_fit(t->head, m->path, m->path_len + 1) ||
		    table_bytes(t, m->path)[m->path_len] != '\0')
			return false;
	}
	return true;
}

static const char *check(struct table *t)
{
	const struct table_header *h = t->head;

	if (!section_fits(h, &h->rules, sizeof(struct rule)) || !section_fits(h, &h->sets, sizeof(struct source_set)) ||
	    !section_fits(h, &h->slots, sizeof(struct slot)) || !section_fits(h, &h->globs, sizeof(struct glob)) ||
	    !section_fits(h, &h->marks, sizeof(struct mark)) || !section_fits(h, &h->words, sizeof(uint32_t)) ||
	    !section_fits(h, &h->bytes, 1))
		return "a section of the table is out of bounds";
	if (h->policies > h->rules.count + 1 || h->sets.count == 0)
		return "a count of the table is wrong";
	if (!rules_fit(t))
		return "a rule of the table is damaged";
	if (!slots_fit(t))
		return "the index of the table is damaged";
	for (uint32_t i = 0; i < h->globs.count; i++)
		if (!glob_fits(t, &t->globs[i]))
			return "a glob of the table is damaged";
	return marks_fit(t) ? NULL : "a mark of the table is damaged";
}

static const char *make_scratch(struct table *t)
{
	const struct table_header *h = t->head;

	t->stamp = t->state_stamp = 0;
	t->seen = calloc(h->rules.count + 1, sizeof(uint32_t));
	t->candidates = calloc(h->rules.count + 1, sizeof(uint32_t));
	t->set_seen = calloc(h->sets.count, sizeof(uint32_t));
	t->active = calloc(h->sets.count, sizeof(uint32_t));
	t->policy_seen = calloc(h->policies + 1, sizeof(uint32_t));
	t->now = calloc(t->glob_words_max + 1, sizeof(uint32_t));
	t->next = calloc(t->glob_words_max + 1, sizeof(uint32_t));
	t->state_seen = calloc(t->glob_words_max + 1, sizeof(uint32_t));
	if (t->seen && t->candidates && t->set_seen && t->active && t->policy_seen && t->now && t->next && t->state_seen)
		return NULL;
	table_close(t);
	return "no memory for the table";
}

const char *table_open(struct table *t, const void *base, size_t size)
{
	const struct table_header *h = base;
	const char *wrong;

	memset(t, 0, sizeof(*t));
	if (size < sizeof(*h) || size > TABLE_MAX_BYTES || memcmp(h->magic, TABLE_MAGIC, sizeof(h->magic)) != 0)
		return "not a table";
	if (h->version != TABLE_VERSION || h->size != size)
		return "a table of another version or size";
	t->base = base;
	t->head = h;
	t->rules = (const void *)(t->base + h->rules.offset);
	t->sets = (const void *)(t->base + h->sets.offset);
	t->slots = (const void *)(t->base + h->slots.offset);
	t->globs = (const void *)(t->base + h->globs.offset);
	t->marks = (const void *)(t->base + h->marks.offset);
	t->words = (const void *)(t->base + h->words.offset);
	wrong = check(t);
	return wrong ? wrong : make_scratch(t);
}

const char *table_share(struct table *t, const struct table *of)
{
	*t = *of;
	return make_scratch(t);
}

void table_close(struct table *t)
{
	free(t->seen);
	free(t->candidates);
	free(t->set_seen);
	free(t->active);
	free(t->policy_seen);
	free(t->now);
	free(t->next);
	free(t->state_seen);
	memset(t, 0, sizeof(*t));
}

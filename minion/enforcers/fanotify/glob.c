/* SPDX-License-Identifier: Apache-2.0 */
/* A glob as a set of states that advances over the path together: no backtracking, so no pattern is slow on purpose.
 * Byte by byte, as everywhere: a path is bytes to the kernel. */
#include "glob.h"

#include <string.h>

uint32_t glob_instruction_words(uint32_t word, uint32_t left)
{
	uint32_t words = 1;

	switch (word >> 24) {
	case GLOB_CLASS:
		words += 2 * (word & 0xffff);
		break;
	case GLOB_SKIP: /* table.py makes one kind: over a LITERAL and an ANY */
		return (word & 0xffffff) == 2 && left > 3 ? 1 : 0;
	case GLOB_END:
	case GLOB_LITERAL:
	case GLOB_ONE:
	case GLOB_STAR:
	case GLOB_ANY:
		break;
	default:
		return 0;
	}
	return words <= left ? words : 0;
}

/* Enter a state, and those that follow it without reading anything. Each state is entered once, which bounds the recursion. */
static void enter(struct table *t, const uint32_t *program, uint32_t state, uint32_t *count)
{
	for (;; state++) {
		uint32_t op = program[state] >> 24;

		if (t->state_seen[state] == t->state_stamp)
			return;
		t->state_seen[state] = t->state_stamp;
		t->next[(*count)++] = state;
		if (op == GLOB_SKIP)
			enter(t, program, state + 1 + (program[state] & 0xffffff), count);
		else if (op != GLOB_STAR && op != GLOB_ANY)
			return;
	}
}

static bool in_class(const uint32_t *class, uint32_t c)
{
	uint32_t ranges = class[0] & 0xffff;
	bool found = false;

	for (uint32_t i = 0; i < ranges && !found; i++)
		found = class[1 + 2 * i] <= c && c <= class[2 + 2 * i];
	return c != '/' && found != ((class[0] & GLOB_NEGATED) != 0);
}

static void advance(struct table *t, const uint32_t *program, uint32_t state, uint32_t c, uint32_t *count)
{
	uint32_t word = program[state];

	switch (word >> 24) {
	case GLOB_LITERAL:
		if (c == (word & 0xffffff))
			enter(t, program, state + 1, count);
		break;
	case GLOB_ONE:
		if (c != '/')
			enter(t, program, state + 1, count);
		break;
	case GLOB_STAR:
		if (c != '/')
			enter(t, program, state, count);
		break;
	case GLOB_ANY:
		enter(t, program, state, count);
		break;
	case GLOB_CLASS:
		if (in_class(program + state, c))
			enter(t, program, state + 1 + 2 * (word & 0xffff), count);
		break;
	default: /* an end has nothing after it, a skip was followed when it was entered */
		break;
	}
}

/* Forget which states were entered. */
static void next_round(struct table *t, uint32_t words)
{
	if (++t->state_stamp == 0) {
		memset(t->state_seen, 0, sizeof(uint32_t) * words);
		t->state_stamp = 1;
	}
}

bool glob_run(struct table *t, const struct glob *g, const char *text, uint32_t len)
{
	const uint32_t *program = t->words + g->program;
	uint32_t count = 0;

	next_round(t, t->glob_words_max);
	enter(t, program, 0, &count);
	for (uint32_t i = 0; i < len && count > 0; i++) {
		uint32_t c = (uint8_t)text[i], states = count, *swap = t->now;

		t->now = t->next;
		t->next = swap;
		count = 0;
		next_round(t, t->glob_words_max);
		for (uint32_t s = 0; s < states; s++)
			advance(t, program, t->now[s], c, &count);
	}
	for (uint32_t s = 0; s < count; s++)
		if (program[t->next[s]] >> 24 == GLOB_END)
			return true;
	return false;
}

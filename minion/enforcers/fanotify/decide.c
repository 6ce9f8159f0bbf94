/* SPDX-License-Identifier: Apache-2.0 */
/* Decisions without a kernel, so that tests can compare them with common/policy/match.py.
 *
 * Standard input is a sequence of items; every number is a u32, every string a length and its bytes:
 *   'T' string                                    use this table; answered with a string, empty or what is wrong with it
 *   'O' entity flags path source device inode args   decide; args: count and strings; device and inode are u64
 * An operation is answered with verdict, rule, by_posture. Flags: 1 owner, 2 write, 4 tty, 8 args unknown.
 */
#include "decide.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "table.h"

enum { OWNER = 1, WRITE_FLAG = 2, TTY = 4, ARGS_UNKNOWN = 8, STRING_MAX = 256 << 20 };

struct given {
	uint32_t flags, source_len;
	char *source;
	struct arguments args;
};

static bool get(void *into, size_t size)
{
	return fread(into, 1, size, stdin) == size;
}

static uint32_t number(void)
{
	uint32_t n = 0;

	if (!get(&n, sizeof(n)))
		exit(1);
	return n;
}

static char *string(uint32_t *len)
{
	char *s;

	*len = number();
	s = *len <= STRING_MAX ? malloc((size_t)*len + 1) : NULL;
	if (!s || !get(s, *len))
		exit(1);
	s[*len] = '\0';
	return s;
}

static const char *source(void *context, uint32_t *len)
{
	struct given *g = context;

	*len = g->source_len;
	return g->source_len ? g->source : NULL;
}

static bool is_owner(void *context)
{
	return ((struct given *)context)->flags & OWNER;
}

static bool writes(void *context)
{
	return ((struct given *)context)->flags & WRITE_FLAG;
}

static bool tty(void *context)
{
	return ((struct given *)context)->flags & TTY;
}

static const struct arguments *args(void *context)
{
	struct given *g = context;

	return g->flags & ARGS_UNKNOWN ? NULL : &g->args;
}

static void decide(struct table *t)
{
	struct given g = {0};
	struct facts facts = {&g, source, is_owner, writes, tty, args};
	struct operation op = {.entity = number() ? FILE_ENTITY : PROCESS, .facts = &facts};
	struct decision d;
	uint32_t answer[3], len;
	char **values;

	g.flags = number();
	op.path = string(&op.path_len);
	g.source = string(&g.source_len);
	if (!get(&op.device, sizeof(op.device)) || !get(&op.inode, sizeof(op.inode)))
		exit(1);
	g.args.count = number();
	values = calloc((size_t)g.args.count + 1, sizeof(*values));
	for (uint32_t i = 0; values && i < g.args.count; i++)
		values[i] = string(&len);
	g.args.values = (const char *const *)values;
	d = table_decide(t, &op);
	answer[0] = d.verdict;
	answer[1] = d.rule;
	answer[2] = d.by_posture;
	fwrite(answer, sizeof(answer), 1, stdout);
	for (uint32_t i = 0; values && i < g.args.count; i++)
		free(values[i]);
	free(values);
	free(g.source);
	free((char *)op.path);
}

int decide_main(void)
{
	struct table t = {0};
	void *bytes = NULL;

	for (int item = getchar(); item != EOF; item = getchar()) {
		if (item == 'T') {
			uint32_t len, n;
			const char *wrong;

			table_close(&t);
			free(bytes);
			bytes = string(&len);
			wrong = table_open(&t, bytes, len);
			n = wrong ? (uint32_t)strlen(wrong) : 0;
			fwrite(&n, sizeof(n), 1, stdout);
			fwrite(wrong ? wrong : "", 1, n, stdout);
		} else if (item == 'O' && t.head) {
			decide(&t);
		} else {
			return 1;
		}
		fflush(stdout);
	}
	table_close(&t);
	free(bytes);
	return 0;
}

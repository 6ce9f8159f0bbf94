/* SPDX-License-Identifier: Apache-2.0 */
/* Records to the agent, from all threads of the worker. Never waits for the agent: those that do not fit are counted by rule. */
#ifndef GARRISON_ALERTS_H
#define GARRISON_ALERTS_H

#include <pthread.h>
#include <stdbool.h>
#include <stdint.h>

#include "wire.h"

struct alerts {
	pthread_mutex_t lock; /* held over nothing that can wait */
	int records;
	struct shared *shared;
	uint32_t generation, rules;	       /* of the table that dropped[] is about */
	uint32_t *dropped;		       /* by rule: alerts that did not fit */
	uint32_t dropped_total, dropped_before; /* not yet told; of rules of other tables */
};

void alerts_open(struct alerts *a, int records, struct shared *shared);

/* Tell r, or count it for its rule. */
void alerts_report(struct alerts *a, const struct record *r, const char *path, const char *exe, const char *cwd);

/* Tell what did not fit, as far as it does now. */
void alerts_tell_dropped(struct alerts *a);

/* Count by the rules of another table from now on; dropped is one zero for each. */
void alerts_switch(struct alerts *a, uint32_t generation, uint32_t rules, uint32_t *dropped);

uint64_t now_ns(int clock);

#endif

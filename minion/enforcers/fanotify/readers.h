/* SPDX-License-Identifier: Apache-2.0 */
/* Threads that answer the kernel: one for each level of stacking, with a fanotify group of its own (ADR 0007).
 *
 * - The kernel opens an event's file for its reader. On an overlay that opens the layer's file too, and this open waits for an
 *   answer as any other: it comes from the reader of a lower level, which waits for still lower ones only.
 * - Readers start when the first mark of their level is set, and end with the process.
 */
#ifndef GARRISON_READERS_H
#define GARRISON_READERS_H

#include <sys/types.h>

#include "alerts.h"
#include "stacking.h"
#include "table.h"
#include "worker.h"

/* A table as the readers use it: each has scratch memory of its own. */
struct rules {
	const void *mapped;
	size_t size;
	struct table of[LEVELS];
};

struct reader;

struct readers {
	const struct worker_setup *setup;
	struct alerts *alerts;
	struct rules *rules; /* NULL before the first table: events wait until then */
	int switched;	     /* eventfd: some reader has taken the rules */
	pid_t control;
	struct reader *of[LEVELS]; /* NULL when not started */
};

bool readers_open(struct readers *all, const struct worker_setup *setup, struct alerts *alerts);

/* The group of a level, whose reader is started if need be. -1 with errno when it cannot be. */
int readers_group(struct readers *all, uint32_t level);

/* Make every reader use rules from its next event on. Returns once none uses the rules before. */
void readers_switch(struct readers *all, struct rules *rules);

#endif

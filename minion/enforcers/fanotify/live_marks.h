/* SPDX-License-Identifier: Apache-2.0 */
/* The marks that are set on the readers' groups, and their change from one table to the next. */
#ifndef GARRISON_LIVE_MARKS_H
#define GARRISON_LIVE_MARKS_H

#include <sys/types.h>

#include "readers.h"
#include "stacking.h"
#include "table.h"
#include "wire.h"

/* A mark that is set. device and inode tell what it is on, since its path may lead elsewhere by now. */
struct live_mark {
	dev_t device;
	ino_t inode;	/* 0 for a file system */
	uint32_t level; /* of its file system, and so of the reader that has it */
	uint64_t mask;
	char *path;
};

struct mark_list {
	struct live_mark *items;
	uint32_t count;
};

/* Each list is sorted by object. */
struct live_marks {
	struct readers *readers;
	struct stacking stacking;
	struct shared *shared;
	struct mark_list wanted, stale; /* stale: not wanted any more, but still set */
	uint64_t stale_until_ns;
};

/* Set the marks of t and return them in added. On error those that nobody else wants are removed again and reply says why. */
bool marks_add(struct live_marks *l, const struct table *t, struct mark_list *added, struct control *reply);

/* Take added as those that are wanted; the others become stale. */
void marks_switch(struct live_marks *l, struct mark_list *added);

/* Remove stale marks once their time has come. */
void marks_drop_stale(struct live_marks *l);

#endif

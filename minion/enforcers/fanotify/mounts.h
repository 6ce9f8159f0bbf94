/* SPDX-License-Identifier: Apache-2.0 */
/* Gives the path of an event's file as this mount namespace knows it. */
#ifndef GARRISON_MOUNTS_H
#define GARRISON_MOUNTS_H

#include <sys/stat.h>

#include "table.h"

struct mounts {
	int mountinfo; /* kept open: a change wakes poll() with POLLPRI */
	uint32_t count, room;
	struct mount_entry {
		int id;
		dev_t device;
		bool overlay;
		char *at;
	} *entries; /* by id */
};

bool mounts_open(struct mounts *m);
void mounts_reload(struct mounts *m);
const struct mount_entry *mounts_find(const struct mounts *m, int id); /* NULL when it is none of ours */

/* Resolve the file behind fd into path. Returns its length, 0 when it has no name here that can be trusted: path then holds what
 * the kernel shows, if anything. Fills device, inode and owner of target. */
uint32_t mounts_path(struct mounts *m, int fd, struct stat *target, char path[PATH_BYTES]);

#endif

/* SPDX-License-Identifier: Apache-2.0 */
/* How far a file system is stacked on others: opening a file of an overlay opens one of a layer, which may be on an overlay again. */
#ifndef GARRISON_STACKING_H
#define GARRISON_STACKING_H

#include <stdint.h>

#include "mounts.h"

enum { LEVELS = 3 }; /* linux/fs.h FILESYSTEM_MAX_STACK_DEPTH + 1 */

struct stacking {
	struct mounts mounts;
	dev_t known; /* the last file system that was asked for, 0 when none was */
	uint32_t level;
};

bool stacking_open(struct stacking *s);

/* Look at the mounts anew. */
void stacking_refresh(struct stacking *s);

/* Level of the file system of fd, which may be opened with O_PATH: 0 when it opens no others below, else more than any of those that
 * it does open. */
uint32_t stacking_level(struct stacking *s, int fd);

#endif

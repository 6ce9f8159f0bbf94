/* SPDX-License-Identifier: Apache-2.0 */
/* Marks by object, not by path: what a path leads to may change between two tables. */
#define _GNU_SOURCE
#include "live_marks.h"

#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/fanotify.h>
#include <sys/stat.h>
#include <time.h>
#include <unistd.h>

#define STALE_NS 1000000000ull /* far longer than the kernel takes from looking for one kind of mark to looking for the next */

static uint64_t monotonic_ns(void)
{
	struct timespec t;

	clock_gettime(CLOCK_MONOTONIC, &t);
	return (uint64_t)t.tv_sec * 1000000000u + (uint64_t)t.tv_nsec;
}

static int by_object(const void *a, const void *b)
{
	const struct live_mark *x = a, *y = b;

	if (x->device != y->device)
		return x->device < y->device ? -1 : 1;
	if (x->level != y->level)
		return x->level < y->level ? -1 : 1;
	return (x->inode > y->inode) - (x->inode < y->inode);
}

static unsigned int mark_flags(const struct live_mark *m, unsigned int verb)
{
	return verb | (m->inode == 0 ? FAN_MARK_FILESYSTEM : 0);
}

/* On a directory, the mask is for what is in it, too. */
static uint64_t full_mask(const struct live_mark *m)
{
	return m->mask | FAN_ONDIR | (m->inode == 0 ? 0 : FAN_EVENT_ON_CHILD);
}

static bool still_there(const struct live_mark *m)
{
	struct stat s;

	return stat(m->path, &s) == 0 && s.st_dev == m->device && (m->inode == 0 || s.st_ino == m->inode);
}

static void free_marks(struct mark_list *l)
{
	for (uint32_t i = 0; i < l->count; i++)
		free(l->items[i].path);
	free(l->items);
	*l = (struct mark_list){0};
}

/* Sort by object; several marks on one object become one with all their bits. */
static void merge_marks(struct mark_list *l)
{
	uint32_t kept = 0;

	qsort(l->items, l->count, sizeof(*l->items), by_object);
	for (uint32_t i = 0; i < l->count; i++) {
		if (kept > 0 && by_object(&l->items[kept - 1], &l->items[i]) == 0) {
			l->items[kept - 1].mask |= l->items[i].mask;
			free(l->items[i].path);
		} else {
			l->items[kept++] = l->items[i];
		}
	}
	l->count = kept;
}

static uint64_t mask_in(const struct mark_list *l, const struct live_mark *m)
{
	const struct live_mark *found = l->count ? bsearch(m, l->items, l->count, sizeof(*m), by_object) : NULL;

	return found ? found->mask : 0;
}

/* Remove those bits of marks that neither of the two lists wants. */
static void remove_marks(const struct live_marks *l, const struct mark_list *marks, const struct mark_list *wanted,
			 const struct mark_list *wanted_too)
{
	for (uint32_t i = 0; i < marks->count; i++) {
		const struct live_mark *m = &marks->items[i];
		uint64_t keep = mask_in(wanted, m) | mask_in(wanted_too, m), surplus = m->mask & ~keep;

		COUNT(l->shared->beats[BEAT_CONTROL]);
		/* A mark whose path leads elsewhere now stays: it costs a look-up and changes no decision. */
		if (surplus != 0 && still_there(m))
			fanotify_mark(readers_group(l->readers, m->level), mark_flags(m, FAN_MARK_REMOVE),
				      keep ? surplus : full_mask(m), AT_FDCWD, m->path);
	}
}

/* Set a mark on what fd is. Returns 1 when set, 0 when the kernel refuses it there, -1 when there is no reader for it. */
static int set_mark(struct live_marks *l, struct live_mark *m, int fd)
{
	char path[32];
	struct stat s;
	int group;

	m->level = stacking_level(&l->stacking, fd);
	group = readers_group(l->readers, m->level);
	if (group < 0)
		return -1;
	snprintf(path, sizeof(path), "/proc/self/fd/%d", fd);
	if (fanotify_mark(group, mark_flags(m, FAN_MARK_ADD), full_mask(m), AT_FDCWD, path) != 0 || fstat(fd, &s) != 0)
		return 0;
	m->device = s.st_dev;
	m->inode = m->inode == 0 ? 0 : s.st_ino;
	return 1;
}

/* Returns 1 when set, 0 when it could be left out, -1 on error. */
static int add_mark(struct live_marks *l, const struct table *t, const struct mark *wanted, struct live_mark *m)
{
	const char *path = table_bytes(t, wanted->path);
	int fd = open(path, O_PATH | O_CLOEXEC), set = 0, error;

	*m = (struct live_mark){.inode = !(wanted->flags & MARK_FILESYSTEM), .mask = wanted->mask, .path = strdup(path)};
	if (fd >= 0 && m->path)
		set = set_mark(l, m, fd);
	error = errno;
	if (fd >= 0)
		close(fd);
	if (set == 1)
		return 1;
	free(m->path);
	errno = error;
	return set == 0 && (wanted->flags & MARK_OPTIONAL) ? 0 : -1;
}

bool marks_add(struct live_marks *l, const struct table *t, struct mark_list *marks, struct control *reply)
{
	marks->items = calloc(t->head->marks.count + 1, sizeof(*marks->items));
	if (!marks->items) {
		control_fail(reply, ENOMEM, "remember marks", "");
		return false;
	}
	stacking_refresh(&l->stacking);
	for (uint32_t i = 0; i < t->head->marks.count; i++) {
		int set = add_mark(l, t, &t->marks[i], &marks->items[marks->count]);

		COUNT(l->shared->beats[BEAT_CONTROL]);
		if (set < 0) {
			control_fail(reply, errno, errno == EMFILE ? "more fanotify groups (fs.fanotify.max_user_groups) to watch" : "watch",
				     table_bytes(t, t->marks[i].path));
			merge_marks(marks);
			remove_marks(l, marks, &l->wanted, &l->stale);
			free_marks(marks);
			return false;
		}
		marks->count += (uint32_t)set;
	}
	merge_marks(marks);
	return true;
}

/* Stale marks stay for a while: an open that looked for the new ones before they were set may only now be looking for the old
 * ones, and would find neither. */
void marks_switch(struct live_marks *l, struct mark_list *added)
{
	struct mark_list stale = {calloc(l->wanted.count + l->stale.count + 1, sizeof(*stale.items)), 0};

	if (stale.items) {
		for (uint32_t i = 0; i < l->wanted.count; i++)
			stale.items[stale.count++] = l->wanted.items[i];
		for (uint32_t i = 0; i < l->stale.count; i++)
			stale.items[stale.count++] = l->stale.items[i];
		merge_marks(&stale);
		free(l->wanted.items);
		free(l->stale.items);
		l->stale = stale;
		l->stale_until_ns = monotonic_ns() + STALE_NS;
	} else {
		free_marks(&l->wanted); /* they stay set, without anybody knowing: safe, and only costs look-ups */
	}
	l->wanted = *added;
}

void marks_drop_stale(struct live_marks *l)
{
	static const struct mark_list none;

	if (l->stale.count == 0 || monotonic_ns() < l->stale_until_ns)
		return;
	remove_marks(l, &l->stale, &l->wanted, &none);
	free_marks(&l->stale);
}

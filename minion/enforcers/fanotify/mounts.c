/* SPDX-License-Identifier: Apache-2.0 */
/* Paths in policies mean this mount namespace. A process in another one can bind a file to any name, so the name that the kernel
 * shows counts only for files opened through a mount of ours. For others the file's handle is looked up in our mount of the same
 * file system, which gives the name here; failing that, the shown name must lead to the same file here. Else: unknown.
 * Opens with O_PATH only, which no permission event is raised for. */
#define _GNU_SOURCE
#include "mounts.h"

#include <fcntl.h>
#include <linux/magic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/statfs.h>
#include <sys/sysmacros.h>
#include <unistd.h>

bool mounts_open(struct mounts *m)
{
	memset(m, 0, sizeof(*m));
	m->mountinfo = open("/proc/self/mountinfo", O_RDONLY | O_CLOEXEC);
	if (m->mountinfo < 0)
		return false;
	mounts_reload(m);
	return true;
}

static void forget(struct mounts *m)
{
	for (uint32_t i = 0; i < m->count; i++)
		free(m->entries[i].at);
	m->count = 0;
}

/* mountinfo escapes space, tab, line break and backslash as \ooo (proc(5)). */
static void unescape(char *text)
{
	char *out = text;

	for (; *text; out++) {
		if (text[0] == '\\' && text[1] >= '0' && text[1] <= '3' && text[2] && text[3]) {
			*out = (char)((text[1] - '0') << 6 | (text[2] - '0') << 3 | (text[3] - '0'));
			text += 4;
		} else {
			*out = *text++;
		}
	}
	*out = '\0';
}

static void add(struct mounts *m, const char *line)
{
	char at[PATH_BYTES];
	const char *type = strstr(line, " - ");
	unsigned int major, minor;
	int id;

	if (!type || sscanf(line, "%d %*d %u:%u %*s %4095s", &id, &major, &minor, at) != 4)
		return;
	if (m->count == m->room) {
		uint32_t room = m->room ? 2 * m->room : 64;
		void *larger = realloc(m->entries, room * sizeof(*m->entries));

		if (!larger)
			return; /* files on this mount will be resolved the long way */
		m->entries = larger;
		m->room = room;
	}
	unescape(at);
	m->entries[m->count] =
		(struct mount_entry){id, makedev(major, minor), strncmp(type + 3, "overlay ", 8) == 0, strdup(at)};
	m->count += m->entries[m->count].at != NULL;
}

static int by_id(const void *a, const void *b)
{
	const struct mount_entry *x = a, *y = b;

	return (x->id > y->id) - (x->id < y->id);
}

void mounts_reload(struct mounts *m)
{
	size_t size = 0, room = 1 << 16;
	char *text = malloc(room), *line, *rest;
	ssize_t got;

	forget(m);
	lseek(m->mountinfo, 0, SEEK_SET);
	while (text && (got = read(m->mountinfo, text + size, room - size - 1)) > 0) {
		size += (size_t)got;
		if (room - size < 1 << 12) {
			char *larger = realloc(text, room *= 2);

			if (!larger)
				break;
			text = larger;
		}
	}
	if (!text)
		return;
	text[size] = '\0';
	for (line = strtok_r(text, "\n", &rest); line; line = strtok_r(NULL, "\n", &rest))
		add(m, line);
	free(text);
	qsort(m->entries, m->count, sizeof(*m->entries), by_id);
}

const struct mount_entry *mounts_find(const struct mounts *m, int id)
{
	struct mount_entry key = {.id = id};

	return m->count ? bsearch(&key, m->entries, m->count, sizeof(key), by_id) : NULL;
}

static uint32_t shown_path(int fd, char path[PATH_BYTES])
{
	char link[40];
	ssize_t got;

	snprintf(link, sizeof(link), "/proc/self/fd/%d", fd);
	got = readlink(link, path, PATH_BYTES);
	if (got <= 0 || got >= (ssize_t)PATH_BYTES || path[0] != '/')
		return 0;
	path[got] = '\0';
	return (uint32_t)got;
}

static bool same_file(const char *path, const struct stat *target)
{
	struct stat named;

	return stat(path, &named) == 0 && named.st_dev == target->st_dev && named.st_ino == target->st_ino;
}

/* A file that lost the name it was opened by keeps it for us. A file may also be called so: then the name leads to it. */
static uint32_t without_deleted(const struct stat *target, char path[PATH_BYTES], uint32_t len)
{
	static const char suffix[] = " (deleted)";
	uint32_t cut = sizeof(suffix) - 1;

	if (len > cut && memcmp(path + len - cut, suffix, cut) == 0 && !same_file(path, target))
		path[len -= cut] = '\0';
	return len;
}

/* Look the file's handle up in our mounts of its file system. */
static uint32_t path_by_handle(struct mounts *m, int fd, const struct stat *target, char path[PATH_BYTES])
{
	union {
		struct file_handle handle;
		char room[sizeof(struct file_handle) + MAX_HANDLE_SZ];
	} h = {.handle.handle_bytes = MAX_HANDLE_SZ};
	int mount_id;

	if (name_to_handle_at(fd, "", &h.handle, &mount_id, AT_EMPTY_PATH) != 0)
		return 0;
	for (uint32_t i = 0; i < m->count; i++) {
		uint32_t len = 0;
		int here;

		/* The mount is named by the working directory: open_by_handle_at() takes no O_PATH descriptor, and opening the
		 * mount point in any other way could raise an event that we would have to answer ourselves. */
		if (m->entries[i].device != target->st_dev || chdir(m->entries[i].at) != 0)
			continue;
		here = open_by_handle_at(AT_FDCWD, &h.handle, O_PATH | O_CLOEXEC);
		if (chdir("/") != 0 || here < 0)
			continue;
		len = shown_path(here, path);
		close(here);
		if (len > 0 && same_file(path, target))
			return len;
	}
	return 0;
}

/* An overlay opens the files of its layers through mounts of its own, whose root is the layer. Where the layer is an overlay as a
 * whole, which has no handles, the shown path is below one of our mounts. */
static uint32_t path_in_overlay(const struct mounts *m, int fd, const struct stat *target, char path[PATH_BYTES])
{
	char shown[PATH_BYTES];
	struct statfs s;

	if (fstatfs(fd, &s) != 0 || s.f_type != OVERLAYFS_SUPER_MAGIC || shown_path(fd, shown) == 0)
		return 0;
	for (uint32_t i = 0; i < m->count; i++) {
		const char *at = m->entries[i].at, *inside = strcmp(shown, "/") == 0 ? "" : shown;
		int len = m->entries[i].overlay ? snprintf(path, PATH_BYTES, "%s%s", strcmp(at, "/") == 0 ? "" : at, inside) : 0;

		if (len > 0 && len < (int)PATH_BYTES && same_file(path, target))
			return (uint32_t)len;
	}
	return 0;
}

uint32_t mounts_path(struct mounts *m, int fd, struct stat *target, char path[PATH_BYTES])
{
	struct statx x;
	uint32_t len;

	if (statx(fd, "", AT_EMPTY_PATH, STATX_BASIC_STATS | STATX_MNT_ID, &x) != 0) {
		memset(target, 0, sizeof(*target));
		path[0] = '\0';
		return 0;
	}
	target->st_dev = makedev(x.stx_dev_major, x.stx_dev_minor);
	target->st_ino = x.stx_ino;
	target->st_uid = x.stx_uid;
	len = shown_path(fd, path);
	if (len == 0)
		path[0] = '\0';
	if ((x.stx_mask & STATX_MNT_ID) && mounts_find(m, (int)x.stx_mnt_id))
		return len ? without_deleted(target, path, len) : 0;
	if (len > 0 && same_file(path, target))
		return len;
	len = path_by_handle(m, fd, target, path);
	if (len == 0)
		len = path_in_overlay(m, fd, target, path);
	if (len == 0 && shown_path(fd, path) == 0)
		path[0] = '\0';
	return len;
}

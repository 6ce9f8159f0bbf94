/* SPDX-License-Identifier: Apache-2.0 */
/* Facts about a waiting thread.
 *
 * - The thread sleeps in the kernel, so what describes its system call cannot change; its memory can, through other threads.
 *   So flags passed in registers are trusted, flags passed in memory (openat2) are not.
 * - Nothing here opens a file outside /proc: an open on a watched file system would wait for ourselves.
 * - That memory can be backed by something slow on purpose (FUSE): reading it may then end in the watcher's hands. It is read for
 *   listed arguments and for refused loaders only.
 * - A fact that cannot be told is reported as unknown; table.c counts it against the operation.
 */
#define _GNU_SOURCE
#include "process.h"

#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/syscall.h>
#include <sys/uio.h>
#include <time.h>
#include <unistd.h>

#define ASLEEP_FIRST_NS 10000 /* doubled each time; 40 ms in all */
#define ASLEEP_LAST_NS 20000000

void process_init(struct process *p, pid_t tid, int event_fd, const struct stat *target)
{
	/* Not the buffers: clearing 80 KB would cost more than the rest of an answer. */
	memset(p, 0, offsetof(struct process, source));
	p->tid = tid;
	p->event_fd = event_fd;
	p->target = target;
}

static ssize_t slurp(pid_t pid, const char *name, char *into, size_t size)
{
	char path[64];
	ssize_t got;
	int fd;

	snprintf(path, sizeof(path), "/proc/%d/%s", pid, name);
	fd = open(path, O_RDONLY | O_CLOEXEC);
	if (fd < 0)
		return -1;
	got = read(fd, into, size - 1);
	close(fd);
	into[got > 0 ? got : 0] = '\0';
	return got;
}

uint32_t process_link(pid_t pid, const char *name, char *into, uint32_t size)
{
	char path[64];
	ssize_t got;

	snprintf(path, sizeof(path), "/proc/%d/%s", pid, name);
	got = readlink(path, into, size);
	return got <= 0 || (uint32_t)got >= size ? 0 : (uint32_t)got;
}

int process_number(pid_t pid, const char *name)
{
	char text[32];

	return slurp(pid, name, text, sizeof(text)) > 0 ? (int)strtoul(text, NULL, 10) : -1;
}

bool process_status(struct process *p)
{
	char text[4096], *tgid, *ppid, *uid;
	unsigned int real, effective, saved, fs;

	if (p->have_status)
		return p->status_ok;
	p->have_status = true;
	if (p->tid <= 0 || slurp(p->tid, "status", text, sizeof(text)) <= 0)
		return false;
	/* The name in the first line has its line breaks escaped, so these are real fields (proc(5)). */
	tgid = strstr(text, "\nTgid:");
	ppid = strstr(text, "\nPPid:");
	uid = strstr(text, "\nUid:");
	if (!tgid || !ppid || !uid || sscanf(uid, "\nUid: %u %u %u %u", &real, &effective, &saved, &fs) != 4)
		return false;
	p->tgid = (pid_t)strtol(tgid + 6, NULL, 10);
	p->ppid = (pid_t)strtol(ppid + 6, NULL, 10);
	p->euid = effective;
	p->fsuid = fs;
	return p->status_ok = true;
}

bool process_stat(struct process *p)
{
	char text[1024], *after;

	if (p->have_stat)
		return p->stat_ok;
	p->have_stat = true;
	if (p->tid <= 0 || slurp(p->status_ok ? p->tgid : p->tid, "stat", text, sizeof(text)) <= 0)
		return false;
	after = strrchr(text, ')'); /* the name may hold anything */
	if (!after || sscanf(after + 1, " %*c %*d %*d %*d %d %*d %*u %*u %*u %*u %*u %*u %*u %*d %*d %*d %*d %*d %*d %lu", &p->tty,
			     &p->start_ticks) != 2)
		return false;
	return p->stat_ok = true;
}

/* The acting program. Its name counts only if the file of that name, as we see it, is the one that runs: in a mount namespace of
 * its own a process can give any file any name. A program that was replaced while it runs is therefore unknown. */
static const char *source(void *context, uint32_t *len)
{
	struct process *p = context;
	struct stat runs, named;
	char path[32];

	p->asked_source = true;
	if (!p->have_source) {
		p->have_source = true;
		p->source_len = p->tid > 0 ? process_link(p->tid, "exe", p->source, sizeof(p->source)) : 0;
		p->source[p->source_len] = '\0';
		snprintf(path, sizeof(path), "/proc/%d/exe", p->tid);
		p->source_ok = p->source_len > 0 && stat(path, &runs) == 0 && stat(p->source, &named) == 0 &&
			       runs.st_dev == named.st_dev && runs.st_ino == named.st_ino;
	}
	*len = p->source_len;
	return p->source_ok ? p->source : NULL;
}

static bool is_owner(void *context)
{
	struct process *p = context;

	return process_status(p) && p->target && p->fsuid == p->target->st_uid;
}

static bool tty(void *context)
{
	struct process *p = context;

	process_status(p);
	return !process_stat(p) || p->tty != 0;
}

/* The event is there before its thread sleeps. On one CPU, or a busy one, we may look before it has come so far: it counts as running
 * then, and its call cannot be told. It will sleep at once, unless it was killed. */
static bool read_call(const struct process *p, char *text, size_t size)
{
	struct timespec pause = {.tv_nsec = ASLEEP_FIRST_NS};

	if (p->tid <= 0)
		return false;
	while (slurp(p->tid, "syscall", text, size) > 0) {
		if (strncmp(text, "running", 7) != 0)
			return true;
		if (pause.tv_nsec > ASLEEP_LAST_NS)
			return false;
		nanosleep(&pause, NULL);
		pause.tv_nsec *= 2;
	}
	return false;
}

static bool call(struct process *p)
{
	char text[256];

	if (p->have_call)
		return p->call_ok;
	p->have_call = true;
	if (!read_call(p, text, sizeof(text)))
		return false;
	p->call_ok = sscanf(text, "%ld %lx %lx %lx %lx %lx %lx", &p->call, &p->call_args[0], &p->call_args[1], &p->call_args[2],
			    &p->call_args[3], &p->call_args[4], &p->call_args[5]) == 7;
	return p->call_ok;
}

/* Whether the open is for writing. io_uring, openat2 (flags in memory), 32-bit callers and whatever else opens files are unknown:
 * they count as writes. No 32-bit x86 or x32 call that opens a file has the number of one of these. */
static bool writes(void *context)
{
	struct process *p = context;
	unsigned long flags;

	if (!call(p))
		return true;
	switch (p->call) {
#ifdef SYS_open
	case SYS_open:
		flags = p->call_args[1];
		break;
#endif
	case SYS_openat:
	case SYS_open_by_handle_at:
		flags = p->call_args[2];
		break;
	case SYS_execve:
	case SYS_execveat:
		return false;
	default:
		return true;
	}
	return (flags & O_ACCMODE) != O_RDONLY || (flags & O_TRUNC);
}

static bool read_memory(pid_t tid, unsigned long from, void *into, size_t size)
{
	struct iovec local = {into, size}, remote = {(void *)from, size};

	return process_vm_readv(tid, &local, 1, &remote, 1, 0) == (ssize_t)size;
}

/* Read a string page by page, since what follows it may not be mapped. Returns its length, or -1. */
static long read_string(pid_t tid, unsigned long from, char *into, size_t size)
{
	size_t done = 0;

	while (done < size) {
		size_t piece = 4096 - (from + done) % 4096;

		if (piece > size - done)
			piece = size - done;
		if (!read_memory(tid, from + done, into + done, piece))
			return -1;
		for (size_t i = 0; i < piece; i++)
			if (into[done + i] == '\0')
				return (long)(done + i);
		done += piece;
	}
	return -1;
}

static bool read_args(struct process *p)
{
	unsigned long argv, pointer;
	size_t used = 0;

	if (!call(p) || (p->call != SYS_execve && p->call != SYS_execveat))
		return false;
	argv = p->call_args[p->call == SYS_execve ? 1 : 2];
	for (uint32_t i = 0; i <= ARGS_MAX; i++) {
		long len;

		if (!read_memory(p->tid, argv + i * sizeof(pointer), &pointer, sizeof(pointer)))
			return false;
		if (pointer == 0)
			return true;
		if (i == 0) /* the program's own name */
			continue;
		len = read_string(p->tid, pointer, p->arg_bytes + used, sizeof(p->arg_bytes) - used);
		if (len < 0)
			return false;
		p->arg_values[p->args.count++] = p->arg_bytes + used;
		used += (size_t)len + 1;
	}
	return false;
}

static const struct arguments *args(void *context)
{
	struct process *p = context;

	if (!p->have_args) {
		p->have_args = true;
		p->args.values = p->arg_values;
		p->args_ok = read_args(p);
	}
	return p->args_ok ? &p->args : NULL;
}

bool process_execs_target(struct process *p)
{
	char name[PATH_BYTES], path[PATH_BYTES + 64];
	struct stat named;
	bool at = call(p) && p->call == SYS_execveat;
	long len;

	if (!p->call_ok || (p->call != SYS_execve && !at))
		return true;
	len = read_string(p->tid, p->call_args[at ? 1 : 0], name, sizeof(name));
	if (len < 0)
		return true;
	if (name[0] == '/')
		snprintf(path, sizeof(path), "/proc/%d/root%s", p->tid, name);
	else if (at && (int)p->call_args[0] != AT_FDCWD)
		snprintf(path, sizeof(path), "/proc/%d/fd/%d%s%s", p->tid, (int)p->call_args[0], len ? "/" : "", name);
	else
		snprintf(path, sizeof(path), "/proc/%d/cwd/%s", p->tid, name);
	return stat(path, &named) != 0 || (named.st_dev == p->target->st_dev && named.st_ino == p->target->st_ino);
}

const struct facts process_facts = {NULL, source, is_owner, writes, tty, args};

/* SPDX-License-Identifier: Apache-2.0 */
/* Answers the kernel. Opens nothing but files of /proc, which raises no permission events. */
#define _GNU_SOURCE
#include "readers.h"

#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <sched.h>
#include <stdlib.h>
#include <string.h>
#include <sys/eventfd.h>
#include <sys/fanotify.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <time.h>
#include <unistd.h>

#include "mounts.h"
#include "process.h"

#define STACK_BYTES (256u << 10)
#define EVENT_FLAGS (O_RDONLY | O_CLOEXEC | O_LARGEFILE | O_NONBLOCK)
#define GROUP_FLAGS                                                                                                                \
	(FAN_CLASS_CONTENT | FAN_CLOEXEC | FAN_NONBLOCK | FAN_UNLIMITED_QUEUE | FAN_UNLIMITED_MARKS | FAN_REPORT_TID)

_Static_assert(BEATS == BEAT_READERS + LEVELS, "each reader has a beat");

struct reader {
	const struct readers *all;
	uint32_t level;
	int group, wake; /* wake: eventfd, there are other rules */
	pid_t tid;
	struct rules *rules, *next;
	struct mounts mounts;
	struct process process;
	struct stat target;
	char path[PATH_BYTES], cwd[1024];
};

static struct shared *shared_of(const struct reader *r)
{
	return r->all->setup->shared;
}

static void beat(const struct reader *r)
{
	COUNT(shared_of(r)->beats[BEAT_READERS + r->level]);
}

/* ---- Records ---- */

static void describe(struct reader *r, struct record *record)
{
	struct process *p = &r->process;

	record->generation = r->rules->of[r->level].head->generation;
	record->ts_ns = now_ns(CLOCK_REALTIME);
	record->mono_ns = now_ns(CLOCK_MONOTONIC);
	record->pid = record->ppid = record->uid = record->auid = record->ses = -1;
	if (process_status(p)) {
		record->pid = p->tgid;
		record->ppid = p->ppid;
		record->uid = (int32_t)p->euid;
		record->auid = process_number(p->tgid, "loginuid");
		record->ses = process_number(p->tgid, "sessionid");
		record->cwd_len = (uint16_t)process_link(p->tid, "cwd", r->cwd, sizeof(r->cwd));
	}
	if (process_stat(p)) {
		record->tty = p->tty;
		record->start_ticks = p->start_ticks;
	}
	if (!p->have_source) {
		uint32_t len;

		process_facts.source(p, &len);
	} else if (!p->source_ok) {
		record->flags |= RECORD_SOURCE_UNKNOWN;
	}
	record->exe_len = (uint16_t)p->source_len;
}

/* ---- Events ---- */

/* Whether a thread of ours waits: a reader for a layer's file, while the kernel opens an overlay's file for it. The kernel names the
 * thread, so that nobody can pretend to be one. */
static bool is_own(const struct readers *all, pid_t tid)
{
	if (tid == all->control)
		return true;
	for (uint32_t i = 0; i < LEVELS; i++) {
		const struct reader *other = __atomic_load_n(&all->of[i], __ATOMIC_ACQUIRE);

		if (other && tid == READ(other->tid))
			return true;
	}
	return false;
}

/* pid 1, the agent and ourselves are refused nothing, whatever a policy says. */
static bool is_exempt(struct reader *r)
{
	const struct worker_setup *setup = r->all->setup;
	struct process *p = &r->process;

	return process_status(p) && (p->tgid == 1 || p->tgid == setup->agent || p->tgid == setup->watcher || p->tgid == getpid());
}

static void count(struct reader *r, enum entity entity, enum verdict verdict)
{
	struct shared *s = shared_of(r);

	if (entity == PROCESS)
		COUNT(s->execs);
	else
		COUNT(s->opens);
	if (verdict == BLOCK)
		COUNT(s->blocks);
	else if (verdict == AUDIT)
		COUNT(s->audits);
}

static struct decision judge(struct reader *r, const struct fanotify_event_metadata *event, struct record *record)
{
	struct facts facts = process_facts;
	struct operation op = {.entity = event->mask & FAN_OPEN_EXEC_PERM ? PROCESS : FILE_ENTITY, .path = r->path};
	struct table *table = &r->rules->of[r->level];
	struct decision d;

	op.path_len = mounts_path(&r->mounts, event->fd, &r->target, r->path);
	op.device = r->target.st_dev;
	op.inode = r->target.st_ino;
	facts.context = &r->process;
	op.facts = &facts;
	process_init(&r->process, event->pid, event->fd, &r->target);
	d = table_decide(table, &op);
	if (d.verdict != ALLOW && op.entity == PROCESS && table_is_loader(table, op.device, op.inode) &&
	    !process_execs_target(&r->process))
		d.verdict = ALLOW; /* the program that asked for this loader had its own event */
	record->entity = op.entity;
	record->rule = d.rule;
	record->path_len = (uint16_t)op.path_len;
	record->flags = (uint16_t)(d.by_posture ? RECORD_BY_POSTURE : 0);
	if (op.path_len == 0) {
		record->path_len = (uint16_t)strlen(r->path);
		record->flags |= RECORD_PATH_UNKNOWN;
		COUNT(shared_of(r)->unresolved);
	}
	if (d.verdict == BLOCK && is_exempt(r)) {
		d.verdict = AUDIT;
		record->flags |= RECORD_EXEMPT;
		COUNT(shared_of(r)->exempted);
	}
	record->verdict = d.verdict;
	count(r, op.entity, d.verdict);
	return d;
}

static void answer(struct reader *r, const struct fanotify_event_metadata *event)
{
	struct fanotify_response response = {.fd = event->fd, .response = FAN_ALLOW};
	struct record record = {.type = RECORD_ALERT};
	bool alert = false;

	if (event->fd < 0) /* the kernel has answered for us */
		return;
	/* pid 0: outside our PID namespace, so not of this node. File systems may be shared with what is. */
	if (event->pid == 0) {
		COUNT(shared_of(r)->foreign);
	} else if (!is_own(r->all, event->pid) && (event->mask & (FAN_OPEN_PERM | FAN_OPEN_EXEC_PERM))) {
		struct decision d = judge(r, event, &record);

		response.response = d.verdict == BLOCK ? FAN_DENY : FAN_ALLOW;
		alert = d.verdict != ALLOW;
		if (alert)
			describe(r, &record); /* before the answer: afterwards the process may be gone */
	}
	if (write(r->group, &response, sizeof(response)) != (ssize_t)sizeof(response) && errno != ENOENT)
		_exit(3); /* ENOENT: the process was killed meanwhile. Else: the watcher starts another worker */
	close(event->fd);
	if (alert)
		alerts_report(r->all->alerts, &record, r->path, r->process.source, r->cwd);
	beat(r);
}

static void answer_all(struct reader *r)
{
	/* Few at a time: each is an open descriptor, and a change of mounts must not wait long. */
	char buffer[64 * sizeof(struct fanotify_event_metadata)] __attribute__((aligned(8)));
	struct fanotify_event_metadata *event = (void *)buffer;
	ssize_t left = read(r->group, buffer, sizeof(buffer));

	if (left < 0 && errno != EAGAIN && errno != EINTR && errno != EMFILE && errno != ENFILE && errno != ETXTBSY &&
	    errno != EACCES && errno != ENOENT && errno != ENXIO && errno != ENODEV && errno != EPERM && errno != ESTALE)
		_exit(4);
	for (; FAN_EVENT_OK(event, left); event = FAN_EVENT_NEXT(event, left)) {
		if (event->vers != FANOTIFY_METADATA_VERSION)
			_exit(5);
		answer(r, event);
	}
}

/* ---- Life ---- */

static void take_rules(struct reader *r)
{
	uint64_t times;

	if (read(r->wake, &times, sizeof(times)) < 0 && errno != EAGAIN && errno != EINTR)
		_exit(7);
	__atomic_store_n(&r->rules, __atomic_load_n(&r->next, __ATOMIC_ACQUIRE), __ATOMIC_RELEASE);
	eventfd_write(r->all->switched, 1);
}

static void *turn(void *context)
{
	struct reader *r = context;
	struct pollfd polled[] = {{r->rules ? r->group : -1, POLLIN, 0}, {r->wake, POLLIN, 0}, {r->mounts.mountinfo, POLLPRI, 0}};

	char name[] = "reader-0";

	name[sizeof(name) - 2] = (char)('0' + r->level);
	prctl(PR_SET_NAME, name);
	WRITE(r->tid, gettid());
	if (unshare(CLONE_FS) != 0) /* mounts.c changes the working directory */
		_exit(8);
	for (;;) {
		if (poll(polled, 3, BEAT_EVERY_MS) < 0 && errno != EINTR)
			_exit(6);
		if (polled[1].revents) {
			take_rules(r);
			polled[0].fd = r->group;
		}
		if (polled[2].revents)
			mounts_reload(&r->mounts);
		if (polled[0].revents)
			answer_all(r);
		beat(r);
	}
	return NULL;
}

bool readers_open(struct readers *all, const struct worker_setup *setup, struct alerts *alerts)
{
	*all = (struct readers){.setup = setup, .alerts = alerts, .control = gettid()};
	all->switched = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK);
	return all->switched >= 0;
}

static bool start_thread(struct reader *r)
{
	pthread_attr_t attributes;
	pthread_t thread;
	int error = pthread_attr_init(&attributes);

	if (error == 0) {
		pthread_attr_setstacksize(&attributes, STACK_BYTES);
		pthread_attr_setdetachstate(&attributes, PTHREAD_CREATE_DETACHED);
		error = pthread_create(&thread, &attributes, turn, r);
		pthread_attr_destroy(&attributes);
	}
	errno = error;
	return error == 0;
}

static bool start(struct readers *all, struct reader *r, uint32_t level)
{
	int error;

	*r = (struct reader){.all = all, .level = level, .rules = all->rules, .next = all->rules, .group = -1, .wake = -1};
	r->mounts.mountinfo = -1;
	r->group = fanotify_init(GROUP_FLAGS, EVENT_FLAGS);
	if (r->group >= 0)
		r->wake = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK);
	if (r->wake >= 0 && mounts_open(&r->mounts) && start_thread(r)) {
		__atomic_store_n(&all->of[level], r, __ATOMIC_RELEASE);
		mlockall(MCL_CURRENT); /* a page fault on disk while others wait for us; best effort */
		return true;
	}
	error = errno;
	if (r->wake >= 0)
		close(r->wake);
	if (r->group >= 0)
		close(r->group);
	if (r->mounts.mountinfo >= 0)
		close(r->mounts.mountinfo);
	errno = error;
	return false;
}

int readers_group(struct readers *all, uint32_t level)
{
	static struct reader readers[LEVELS]; /* too large for comfort on the stack */

	if (!all->of[level] && !start(all, &readers[level], level))
		return -1;
	return all->of[level]->group;
}

void readers_switch(struct readers *all, struct rules *rules)
{
	struct pollfd switched = {all->switched, POLLIN, 0};
	eventfd_t times;

	for (uint32_t i = 0; i < LEVELS; i++) {
		if (!all->of[i])
			continue;
		__atomic_store_n(&all->of[i]->next, rules, __ATOMIC_RELEASE);
		eventfd_write(all->of[i]->wake, 1);
	}
	/* A reader that hangs is the watcher's business: it kills us all. */
	for (uint32_t i = 0; i < LEVELS; i++)
		while (all->of[i] && __atomic_load_n(&all->of[i]->rules, __ATOMIC_ACQUIRE) != rules) {
			if (poll(&switched, 1, BEAT_EVERY_MS) > 0)
				eventfd_read(all->switched, &times);
			COUNT(all->setup->shared->beats[BEAT_CONTROL]);
		}
	all->rules = rules;
}

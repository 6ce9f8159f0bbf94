/* SPDX-License-Identifier: Apache-2.0 */
/* Answers the kernel. One thread, one fanotify group, one table.
 *
 * - Never waits for the agent: records that do not fit are counted for each rule and told later.
 * - Opens nothing but files of /proc, which raises no permission events.
 * - A new table: marks are added, the table is switched between two events, and marks that it does not need are removed a second
 *   later. If a mark cannot be set, those added are taken away again and the old table stays.
 * - Ends with the watcher (PR_SET_PDEATHSIG and the end of its socket). The group closes then and the kernel lets everything
 *   pending go: fail-open, reported by whoever is left.
 */
#define _GNU_SOURCE
#include "worker.h"

#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/fanotify.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/socket.h>
#include <sys/uio.h>
#include <time.h>
#include <unistd.h>

#include "live_marks.h"
#include "mounts.h"
#include "process.h"

#define BEAT_EVERY_MS 200 /* a fifth of what the watcher waits for */
#define EVENT_FLAGS (O_RDONLY | O_CLOEXEC | O_LARGEFILE | O_NONBLOCK)
#define GROUP_FLAGS                                                                                                                \
	(FAN_CLASS_CONTENT | FAN_CLOEXEC | FAN_NONBLOCK | FAN_UNLIMITED_QUEUE | FAN_UNLIMITED_MARKS | FAN_REPORT_TID)

struct worker {
	const struct worker_setup *setup;
	int group;
	struct table table;
	const void *mapped; /* NULL before the first table */
	size_t mapped_size;
	struct live_marks marks;
	uint32_t *dropped; /* by rule: alerts that did not fit */
	uint32_t dropped_total, dropped_before; /* not yet told; of rules of earlier tables */
	struct mounts mounts;
	struct process process;
	struct stat target;
	char path[PATH_BYTES], cwd[1024];
};

/* ---- Records ---- */

static uint64_t now_ns(clockid_t clock)
{
	struct timespec t;

	clock_gettime(clock, &t);
	return (uint64_t)t.tv_sec * 1000000000u + (uint64_t)t.tv_nsec;
}

static bool send_record(const struct worker *w, const struct record *r, const char *path, const char *exe, const char *cwd)
{
	struct iovec parts[4] = {
		{(void *)r, sizeof(*r)}, {(void *)path, r->path_len}, {(void *)exe, r->exe_len}, {(void *)cwd, r->cwd_len}};
	struct msghdr message = {.msg_iov = parts, .msg_iovlen = 4};

	return sendmsg(w->setup->records, &message, MSG_DONTWAIT | MSG_NOSIGNAL) >= 0;
}

static bool tell_dropped(struct worker *w, uint32_t rule, uint32_t *count)
{
	struct record r = {.type = RECORD_DROPPED, .generation = w->table.head->generation, .rule = rule, .count = *count};

	if (*count == 0)
		return true;
	r.ts_ns = now_ns(CLOCK_REALTIME);
	r.mono_ns = now_ns(CLOCK_MONOTONIC);
	if (!send_record(w, &r, "", "", ""))
		return false;
	w->dropped_total -= *count;
	*count = 0;
	return true;
}

static void tell_all_dropped(struct worker *w)
{
	if (w->dropped_total == 0 || !tell_dropped(w, NONE, &w->dropped_before))
		return;
	for (uint32_t i = 0; i < w->table.head->rules.count && w->dropped_total > 0; i++)
		if (!tell_dropped(w, i, &w->dropped[i]))
			return;
}

static void describe(struct worker *w, struct record *r)
{
	struct process *p = &w->process;

	r->generation = w->table.head->generation;
	r->ts_ns = now_ns(CLOCK_REALTIME);
	r->mono_ns = now_ns(CLOCK_MONOTONIC);
	r->pid = r->ppid = r->uid = r->auid = r->ses = -1;
	if (process_status(p)) {
		r->pid = p->tgid;
		r->ppid = p->ppid;
		r->uid = (int32_t)p->euid;
		r->auid = process_number(p->tgid, "loginuid");
		r->ses = process_number(p->tgid, "sessionid");
		r->cwd_len = (uint16_t)process_link(p->tid, "cwd", w->cwd, sizeof(w->cwd));
	}
	if (process_stat(p)) {
		r->tty = p->tty;
		r->start_ticks = p->start_ticks;
	}
	if (!p->have_source) {
		uint32_t len;

		process_facts.source(p, &len);
	} else if (!p->source_ok) {
		r->flags |= RECORD_SOURCE_UNKNOWN;
	}
	r->exe_len = (uint16_t)p->source_len;
}

static void report(struct worker *w, struct record *r)
{
	if (w->dropped_total == 0 && send_record(w, r, w->path, w->process.source, w->cwd))
		return;
	/* Those waiting come first, so that counts and alerts stay in order. */
	tell_all_dropped(w);
	if (w->dropped_total == 0 && send_record(w, r, w->path, w->process.source, w->cwd))
		return;
	w->dropped[r->rule]++;
	w->dropped_total++;
	COUNT(w->setup->shared->dropped);
}

/* ---- Events ---- */

/* pid 1, the agent and ourselves are refused nothing, whatever a policy says. */
static bool is_exempt(struct worker *w)
{
	struct process *p = &w->process;

	return process_status(p) &&
	       (p->tgid == 1 || p->tgid == w->setup->agent || p->tgid == w->setup->watcher || p->tgid == getpid());
}

static void count(struct worker *w, enum entity entity, enum verdict verdict)
{
	struct shared *s = w->setup->shared;

	if (entity == PROCESS)
		COUNT(s->execs);
	else
		COUNT(s->opens);
	if (verdict == BLOCK)
		COUNT(s->blocks);
	else if (verdict == AUDIT)
		COUNT(s->audits);
}

static struct decision judge(struct worker *w, const struct fanotify_event_metadata *event, struct record *r)
{
	struct facts facts = process_facts;
	struct operation op = {.entity = event->mask & FAN_OPEN_EXEC_PERM ? PROCESS : FILE_ENTITY, .path = w->path};
	struct decision d;

	op.path_len = mounts_path(&w->mounts, event->fd, &w->target, w->path);
	op.device = w->target.st_dev;
	op.inode = w->target.st_ino;
	facts.context = &w->process;
	op.facts = &facts;
	process_init(&w->process, event->pid, event->fd, &w->target);
	d = table_decide(&w->table, &op);
	if (d.verdict != ALLOW && op.entity == PROCESS && table_is_loader(&w->table, op.device, op.inode) &&
	    !process_execs_target(&w->process))
		d.verdict = ALLOW; /* the program that asked for this loader had its own event */
	r->entity = op.entity;
	r->rule = d.rule;
	r->path_len = (uint16_t)op.path_len;
	r->flags = (uint16_t)(d.by_posture ? RECORD_BY_POSTURE : 0);
	if (op.path_len == 0) {
		r->path_len = (uint16_t)strlen(w->path);
		r->flags |= RECORD_PATH_UNKNOWN;
		COUNT(w->setup->shared->unresolved);
	}
	if (d.verdict == BLOCK && is_exempt(w)) {
		d.verdict = AUDIT;
		r->flags |= RECORD_EXEMPT;
		COUNT(w->setup->shared->exempted);
	}
	r->verdict = d.verdict;
	count(w, op.entity, d.verdict);
	return d;
}

static void answer(struct worker *w, const struct fanotify_event_metadata *event)
{
	struct fanotify_response response = {.fd = event->fd, .response = FAN_ALLOW};
	struct record r = {.type = RECORD_ALERT};
	bool alert = false;

	if (event->fd < 0) /* the kernel has answered for us */
		return;
	/* pid 0: outside our PID namespace, so not of this node. File systems may be shared with what is. */
	if (event->pid == 0) {
		COUNT(w->setup->shared->foreign);
	} else if (w->mapped && (event->mask & (FAN_OPEN_PERM | FAN_OPEN_EXEC_PERM))) {
		struct decision d = judge(w, event, &r);

		response.response = d.verdict == BLOCK ? FAN_DENY : FAN_ALLOW;
		alert = d.verdict != ALLOW;
		if (alert)
			describe(w, &r); /* before the answer: afterwards the process may be gone */
	}
	if (write(w->group, &response, sizeof(response)) != (ssize_t)sizeof(response) && errno != ENOENT)
		_exit(3); /* ENOENT: the process was killed meanwhile. Else: the watcher starts another worker */
	close(event->fd);
	if (alert)
		report(w, &r);
	COUNT(w->setup->shared->worker_beat);
}

static void answer_all(struct worker *w)
{
	/* Few at a time: each is an open descriptor, and a change of mounts must not wait long. */
	char buffer[64 * sizeof(struct fanotify_event_metadata)] __attribute__((aligned(8)));
	struct fanotify_event_metadata *event = (void *)buffer;
	ssize_t left = read(w->group, buffer, sizeof(buffer));

	if (left < 0 && errno != EAGAIN && errno != EINTR && errno != EMFILE && errno != ENFILE && errno != ETXTBSY &&
	    errno != EACCES && errno != ENOENT && errno != ENXIO && errno != ENODEV && errno != EPERM && errno != ESTALE)
		_exit(4);
	for (; FAN_EVENT_OK(event, left); event = FAN_EVENT_NEXT(event, left)) {
		if (event->vers != FANOTIFY_METADATA_VERSION)
			_exit(5);
		answer(w, event);
	}
}

/* ---- Tables ---- */

static const void *map_table(int fd, size_t *size, struct control *reply)
{
	int seals = F_SEAL_SEAL | F_SEAL_SHRINK | F_SEAL_GROW | F_SEAL_WRITE;
	struct stat s;
	void *at;

	if (fd < 0 || fcntl(fd, F_GET_SEALS) != seals || fstat(fd, &s) != 0) {
		control_fail(reply, EINVAL, "table is not a sealed memory file", "");
		return NULL;
	}
	*size = (size_t)s.st_size;
	at = *size ? mmap(NULL, *size, PROT_READ, MAP_SHARED | MAP_POPULATE, fd, 0) : MAP_FAILED;
	if (at != MAP_FAILED)
		return at;
	control_fail(reply, *size ? errno : EINVAL, "map the table", "");
	return NULL;
}

static void take_over(struct worker *w, const struct table *t, const void *mapped, size_t size, uint32_t *dropped)
{
	tell_all_dropped(w);
	w->dropped_before = w->dropped_total;
	free(w->dropped);
	table_close(&w->table);
	w->table = *t;
	w->dropped = dropped;
	w->mapped = mapped;
	w->mapped_size = size;
	WRITE(w->setup->shared->generation, t->head->generation);
}

static void use_table(struct worker *w, int fd, struct control *reply)
{
	size_t size = 0, old_size = w->mapped_size;
	const void *mapped = map_table(fd, &size, reply), *old_mapped = w->mapped;
	struct mark_list marks = {0};
	uint32_t *dropped = NULL;
	struct table t = {0};
	const char *wrong;

	if (!mapped)
		return;
	wrong = table_open(&t, mapped, size);
	if (!wrong)
		dropped = calloc(t.head->rules.count + 1, sizeof(*dropped));
	if (wrong || !dropped || !marks_add(&w->marks, w->group, &t, &marks, reply, w->setup->shared)) {
		if (wrong || !dropped)
			control_fail(reply, wrong ? EINVAL : ENOMEM, wrong ? wrong : "count drops", "");
		free(dropped);
		table_close(&t);
		munmap((void *)mapped, size);
		return;
	}
	take_over(w, &t, mapped, size, dropped);
	marks_switch(&w->marks, &marks);
	if (old_mapped)
		munmap((void *)old_mapped, old_size);
}

/* ---- Life ---- */

static bool obey(struct worker *w)
{
	struct control message, reply = {.type = MSG_RESULT};
	int fd = -1;

	if (!control_receive(w->setup->control, &message, &fd))
		return false;
	reply.generation = message.generation;
	if (message.type == MSG_TABLE)
		use_table(w, fd, &reply);
	if (fd >= 0)
		close(fd);
	return message.type != MSG_TABLE || control_send(w->setup->control, &reply, -1);
}

static int turn(struct worker *w)
{
	struct pollfd polled[] = {
		{w->group, POLLIN, 0}, {w->setup->control, POLLIN, 0}, {w->mounts.mountinfo, POLLPRI, 0}};

	for (;;) {
		if (poll(polled, 3, BEAT_EVERY_MS) < 0 && errno != EINTR)
			return 6;
		if (polled[2].revents)
			mounts_reload(&w->mounts);
		if (polled[0].revents)
			answer_all(w);
		if (polled[1].revents && !obey(w))
			return 0;
		if (w->dropped_total > 0)
			tell_all_dropped(w);
		marks_drop_stale(&w->marks, w->group, w->setup->shared);
		COUNT(w->setup->shared->worker_beat);
	}
}

int worker_run(const struct worker_setup *setup)
{
	static struct worker w; /* too large for comfort on the stack */

	w.setup = setup;
	prctl(PR_SET_PDEATHSIG, SIGKILL);
	if (getppid() != setup->watcher)
		return 0; /* it died before the line above */
	WRITE(setup->shared->worker_pid, (uint64_t)getpid());
	w.group = fanotify_init(GROUP_FLAGS, EVENT_FLAGS);
	if (w.group < 0 || !mounts_open(&w.mounts)) {
		struct control message, reply = {.type = MSG_RESULT};
		int error = errno, fd = -1;

		if (control_receive(setup->control, &message, &fd)) {
			reply.generation = message.generation;
			control_fail(&reply, error, w.group < 0 ? "fanotify_init" : "open /proc/self/mountinfo", "");
			control_send(setup->control, &reply, -1);
		}
		return 2;
	}
	mlockall(MCL_CURRENT); /* a page fault on disk while others wait for us; best effort */
	return turn(&w);
}

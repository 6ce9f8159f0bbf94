/* SPDX-License-Identifier: Apache-2.0 */
/* The worker's first thread: takes tables over. Its readers (readers.c) answer the kernel.
 *
 * - A new table: marks are added, each reader switches between two of its events, and marks that the table does not need are removed
 *   a second later. If a mark cannot be set, those added are taken away again and the old table stays.
 * - Ends with the watcher (PR_SET_PDEATHSIG and the end of its socket). The groups close then and the kernel lets everything
 *   pending go: fail-open, reported by whoever is left.
 */
#define _GNU_SOURCE
#include "worker.h"

#include <errno.h>
#include <fcntl.h>
#include <malloc.h>
#include <poll.h>
#include <signal.h>
#include <stdlib.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/stat.h>
#include <unistd.h>

#include "alerts.h"
#include "live_marks.h"
#include "readers.h"

struct worker {
	const struct worker_setup *setup;
	struct readers readers;
	struct live_marks marks;
	struct alerts alerts;
};

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

static void free_rules(struct rules *rules)
{
	if (!rules)
		return;
	for (uint32_t i = 0; i < LEVELS; i++)
		table_close(&rules->of[i]);
	if (rules->mapped)
		munmap((void *)rules->mapped, rules->size);
	free(rules);
}

/* Returns NULL with the reason in reply when fd holds no table. */
static struct rules *open_rules(int fd, struct control *reply)
{
	struct rules *rules = calloc(1, sizeof(*rules));
	const char *wrong;

	if (!rules) {
		control_fail(reply, ENOMEM, "open the table", "");
		return NULL;
	}
	rules->mapped = map_table(fd, &rules->size, reply);
	if (!rules->mapped) {
		free_rules(rules);
		return NULL;
	}
	wrong = table_open(&rules->of[0], rules->mapped, rules->size);
	for (uint32_t i = 1; !wrong && i < LEVELS; i++)
		wrong = table_share(&rules->of[i], &rules->of[0]);
	if (!wrong)
		return rules;
	control_fail(reply, EINVAL, wrong, "");
	free_rules(rules);
	return NULL;
}

static void use_table(struct worker *w, int fd, struct control *reply)
{
	struct rules *rules = open_rules(fd, reply), *old = w->readers.rules;
	const struct table_header *head = rules ? rules->of[0].head : NULL;
	struct mark_list marks = {0};
	uint32_t *dropped;

	if (!rules)
		return;
	dropped = calloc(head->rules.count + 1, sizeof(*dropped));
	if (!dropped || !marks_add(&w->marks, &rules->of[0], &marks, reply)) {
		if (!dropped)
			control_fail(reply, ENOMEM, "count drops", "");
		free(dropped);
		free_rules(rules);
		return;
	}
	readers_switch(&w->readers, rules);
	alerts_switch(&w->alerts, head->generation, head->rules.count, dropped);
	WRITE(w->setup->shared->generation, head->generation);
	marks_switch(&w->marks, &marks);
	free_rules(old);
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
	struct pollfd polled = {w->setup->control, POLLIN, 0};

	for (;;) {
		if (poll(&polled, 1, BEAT_EVERY_MS) < 0 && errno != EINTR)
			return 6;
		if (polled.revents && !obey(w))
			return 0;
		alerts_tell_dropped(&w->alerts);
		marks_drop_stale(&w->marks);
		COUNT(w->setup->shared->beats[BEAT_CONTROL]);
	}
}

/* Returns what could not be done, with errno. */
static const char *open_all(struct worker *w)
{
	mallopt(M_ARENA_MAX, 1); /* to make another, malloc would open files while others wait for us */
	alerts_open(&w->alerts, w->setup->records, w->setup->shared);
	w->marks.readers = &w->readers;
	w->marks.shared = w->setup->shared;
	if (!readers_open(&w->readers, w->setup, &w->alerts))
		return "eventfd";
	if (!stacking_open(&w->marks.stacking))
		return "open /proc/self/mountinfo";
	return readers_group(&w->readers, 0) < 0 ? "fanotify_init" : NULL;
}

int worker_run(const struct worker_setup *setup)
{
	static struct worker w;
	const char *failed;

	w.setup = setup;
	prctl(PR_SET_PDEATHSIG, SIGKILL);
	if (getppid() != setup->watcher)
		return 0; /* it died before the line above */
	WRITE(setup->shared->worker_pid, (uint64_t)getpid());
	failed = open_all(&w);
	if (failed) {
		struct control message, reply = {.type = MSG_RESULT};
		int error = errno, fd = -1;

		if (control_receive(setup->control, &message, &fd)) {
			reply.generation = message.generation;
			control_fail(&reply, error, failed, "");
			control_send(setup->control, &reply, -1);
		}
		return 2;
	}
	return turn(&w);
}

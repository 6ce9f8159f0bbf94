/* SPDX-License-Identifier: Apache-2.0 */
#define _GNU_SOURCE
#include "alerts.h"

#include <stdlib.h>
#include <sys/socket.h>
#include <sys/uio.h>
#include <time.h>

#include "table.h"

uint64_t now_ns(int clock)
{
	struct timespec t;

	clock_gettime(clock, &t);
	return (uint64_t)t.tv_sec * 1000000000u + (uint64_t)t.tv_nsec;
}

void alerts_open(struct alerts *a, int records, struct shared *shared)
{
	*a = (struct alerts){.lock = PTHREAD_MUTEX_INITIALIZER, .records = records, .shared = shared};
}

static bool send_record(const struct alerts *a, const struct record *r, const char *path, const char *exe, const char *cwd)
{
	struct iovec parts[4] = {
		{(void *)r, sizeof(*r)}, {(void *)path, r->path_len}, {(void *)exe, r->exe_len}, {(void *)cwd, r->cwd_len}};
	struct msghdr message = {.msg_iov = parts, .msg_iovlen = 4};

	return sendmsg(a->records, &message, MSG_DONTWAIT | MSG_NOSIGNAL) >= 0;
}

static bool tell_one(struct alerts *a, uint32_t rule, uint32_t *count)
{
	struct record r = {.type = RECORD_DROPPED, .generation = a->generation, .rule = rule, .count = *count};

	if (*count == 0)
		return true;
	r.ts_ns = now_ns(CLOCK_REALTIME);
	r.mono_ns = now_ns(CLOCK_MONOTONIC);
	if (!send_record(a, &r, "", "", ""))
		return false;
	a->dropped_total -= *count;
	*count = 0;
	return true;
}

static void tell_all(struct alerts *a)
{
	if (a->dropped_total == 0 || !tell_one(a, NONE, &a->dropped_before))
		return;
	for (uint32_t i = 0; i < a->rules && a->dropped_total > 0; i++)
		if (!tell_one(a, i, &a->dropped[i]))
			return;
}

void alerts_report(struct alerts *a, const struct record *r, const char *path, const char *exe, const char *cwd)
{
	pthread_mutex_lock(&a->lock);
	tell_all(a); /* those waiting come first, so that counts and alerts stay in order */
	if (a->dropped_total > 0 || !send_record(a, r, path, exe, cwd)) {
		/* A reader may still decide by the table before. */
		bool known = r->generation == a->generation && r->rule < a->rules;

		(*(known ? &a->dropped[r->rule] : &a->dropped_before))++;
		a->dropped_total++;
		COUNT(a->shared->dropped);
	}
	pthread_mutex_unlock(&a->lock);
}

void alerts_tell_dropped(struct alerts *a)
{
	pthread_mutex_lock(&a->lock);
	tell_all(a);
	pthread_mutex_unlock(&a->lock);
}

void alerts_switch(struct alerts *a, uint32_t generation, uint32_t rules, uint32_t *dropped)
{
	pthread_mutex_lock(&a->lock);
	tell_all(a);
	a->dropped_before = a->dropped_total;
	free(a->dropped);
	a->dropped = dropped;
	a->rules = rules;
	a->generation = generation;
	pthread_mutex_unlock(&a->lock);
}

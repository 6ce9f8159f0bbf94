/* SPDX-License-Identifier: Apache-2.0 */
/* What /proc tells about the thread whose open waits for our answer. */
#ifndef GARRISON_PROCESS_H
#define GARRISON_PROCESS_H

#include <sys/stat.h>
#include <sys/types.h>

#include "table.h"

#define ARGS_MAX 256u	     /* a longer argument list counts as unknown */
#define ARGS_BYTES (64u << 10)

/* One waiting thread; every field is fetched once, when first asked for. */
struct process {
	pid_t tid; /* 0 when it is in a PID namespace that we cannot see */
	int event_fd;
	const struct stat *target;
	bool have_status, have_stat, have_source, have_call, have_args, asked_source;
	bool status_ok, stat_ok, source_ok, call_ok, args_ok;
	pid_t tgid, ppid;
	uid_t euid, fsuid;
	int tty;
	uint64_t start_ticks;
	uint32_t source_len;
	long call;
	unsigned long call_args[6];
	struct arguments args;
	char source[PATH_BYTES];
	const char *arg_values[ARGS_MAX];
	char arg_bytes[ARGS_BYTES];
};

void process_init(struct process *p, pid_t tid, int event_fd, const struct stat *target);

/* Facts over a struct process as context. */
extern const struct facts process_facts;

bool process_status(struct process *p); /* tgid, ppid, euid, fsuid */
bool process_stat(struct process *p);	/* tty, start_ticks; of the thread group's leader once status is known */
int process_number(pid_t pid, const char *name); /* /proc/PID/NAME as a number, -1 when there is none */
uint32_t process_link(pid_t pid, const char *name, char *into, uint32_t size); /* length, 0 when it cannot be read */

/* Whether the exec that waits names the event's own file, and not a program that asks for it as its loader. */
bool process_execs_target(struct process *p);

#endif

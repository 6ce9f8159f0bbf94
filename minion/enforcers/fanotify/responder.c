/* SPDX-License-Identifier: Apache-2.0 */
/* The fanotify responder. This file is the watcher: it starts the worker, passes tables on, and kills a worker that hangs.
 *
 * - Holds no fanotify descriptor and opens no file once the worker runs, so it never waits for the worker (ADR 0007).
 * - A worker of which a thread neither answers nor wakes for a second is killed. Its groups close and the kernel lets everything
 *   pending go: fail-open on purpose, told as RECORD_LAPSE. Then a new worker gets the last table that was accepted.
 * - The second is counted in ticks of our own, so that a machine that was stopped as a whole is not taken for a hang.
 * - The end of the agent's socket ends us and the worker: fail-open, documented.
 *
 * usage: responder CONTROL RECORDS SHARED    descriptors, see wire.h
 *        responder --decide                  answer operations on standard input from a table, for tests (decide.c)
 *        responder --open PATH               try to open PATH for reading; the exit status is the errno, for the probe
 */
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

#include "decide.h"
#include "table.h"
#include "worker.h"

#define TICK_MS 100
#define HUNG_TICKS 10	 /* a second without a sign of life */
#define RESTART_TICKS 10 /* wait after a restart that failed */

struct watcher {
	struct worker_setup setup; /* what the worker will get; setup.control is its end of the socket */
	int agent;		   /* control socket to the agent */
	int worker;		   /* our end of the worker's, -1 when there is none */
	int worker_gone;	   /* pidfd */
	pid_t worker_pid;
	int last, pending;	   /* tables: the last that was accepted, one that the agent waits for; or -1 */
	uint32_t last_generation, pending_generation;
	bool restarting;
	uint64_t beats[BEATS];
	int silent[BEATS], silent_ticks, wait_ticks; /* by thread, and of the one that is silent the longest */
};

void control_fail(struct control *result, int error, const char *doing, const char *on)
{
	result->error = error;
	snprintf(result->text, sizeof(result->text), "%s%s%.180s", doing, *on ? " " : "", on);
}

bool control_send(int socket, const struct control *message, int fd)
{
	char room[CMSG_SPACE(sizeof(int))] __attribute__((aligned(8))) = {0};
	struct iovec part = {(void *)message, sizeof(*message)};
	struct msghdr header = {.msg_iov = &part, .msg_iovlen = 1};

	if (fd >= 0) {
		struct cmsghdr *c;

		header.msg_control = room;
		header.msg_controllen = sizeof(room);
		c = CMSG_FIRSTHDR(&header);
		c->cmsg_level = SOL_SOCKET;
		c->cmsg_type = SCM_RIGHTS;
		c->cmsg_len = CMSG_LEN(sizeof(int));
		memcpy(CMSG_DATA(c), &fd, sizeof(int));
	}
	return sendmsg(socket, &header, MSG_NOSIGNAL) == (ssize_t)sizeof(*message);
}

bool control_receive(int socket, struct control *message, int *fd)
{
	char room[CMSG_SPACE(sizeof(int))] __attribute__((aligned(8)));
	struct iovec part = {message, sizeof(*message)};
	struct msghdr header = {.msg_iov = &part, .msg_iovlen = 1, .msg_control = room, .msg_controllen = sizeof(room)};
	struct cmsghdr *c;
	ssize_t got;

	*fd = -1;
	do
		got = recvmsg(socket, &header, MSG_CMSG_CLOEXEC);
	while (got < 0 && errno == EINTR);
	c = got > 0 ? CMSG_FIRSTHDR(&header) : NULL;
	if (c && c->cmsg_level == SOL_SOCKET && c->cmsg_type == SCM_RIGHTS)
		memcpy(fd, CMSG_DATA(c), sizeof(int));
	if (got == (ssize_t)sizeof(*message))
		return true;
	if (*fd >= 0)
		close(*fd);
	return false;
}

static void tell_lapse(const struct watcher *w, enum lapse lapse, int detail)
{
	struct record r = {.type = RECORD_LAPSE, .rule = NONE, .status = (int32_t)lapse, .count = (uint32_t)detail};
	struct timespec now;

	WRITE(w->setup.shared->lapsed, lapse != LAPSE_RESTARTED);
	clock_gettime(CLOCK_REALTIME, &now);
	r.ts_ns = (uint64_t)now.tv_sec * 1000000000u + (uint64_t)now.tv_nsec;
	clock_gettime(CLOCK_MONOTONIC, &now);
	r.mono_ns = (uint64_t)now.tv_sec * 1000000000u + (uint64_t)now.tv_nsec;
	r.pid = w->worker_pid;
	send(w->setup.records, &r, sizeof(r), MSG_DONTWAIT | MSG_NOSIGNAL); /* shared->lapsed tells it too */
}

static void reply(const struct watcher *w, uint32_t generation, int error, const char *text)
{
	struct control message = {.type = MSG_RESULT, .generation = generation, .error = error};

	snprintf(message.text, sizeof(message.text), "%s", text);
	control_send(w->agent, &message, -1);
}

/* ---- The worker's life ---- */

static bool start_worker(struct watcher *w)
{
	int pair[2];

	if (socketpair(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC, 0, pair) != 0)
		return false;
	w->setup.control = pair[1];
	for (int i = 0; i < BEATS; i++) {
		WRITE(w->setup.shared->beats[i], 0);
		w->beats[i] = 0;
		w->silent[i] = 0;
	}
	w->silent_ticks = 0;
	w->worker_pid = fork();
	if (w->worker_pid == 0) {
		close(pair[0]);
		close(w->agent);
		if (w->last >= 0)
			close(w->last);
		if (w->pending >= 0)
			close(w->pending);
		_exit(worker_run(&w->setup));
	}
	close(pair[1]);
	if (w->worker_pid < 0) {
		close(pair[0]);
		return false;
	}
	w->worker = pair[0];
	w->worker_gone = (int)syscall(SYS_pidfd_open, w->worker_pid, 0);
	return true;
}

static void forget_worker(struct watcher *w)
{
	if (w->worker >= 0)
		close(w->worker);
	if (w->worker_gone >= 0)
		close(w->worker_gone);
	w->worker = w->worker_gone = -1;
}

static bool give_table(struct watcher *w, int table, uint32_t generation)
{
	struct control message = {.type = MSG_TABLE, .generation = generation};

	return control_send(w->worker, &message, table);
}

static void restart(struct watcher *w)
{
	w->restarting = start_worker(w) && give_table(w, w->last, w->last_generation);
	w->wait_ticks = w->restarting ? 0 : RESTART_TICKS;
	COUNT(w->setup.shared->restarts);
	if (!w->restarting)
		tell_lapse(w, LAPSE_RESTART_FAILED, errno);
}

static void worker_ended(struct watcher *w, int status)
{
	bool told = w->silent_ticks >= HUNG_TICKS;

	forget_worker(w);
	if (w->pending >= 0) {
		reply(w, w->pending_generation, EIO, "the worker ended while it took over the table");
		close(w->pending);
		w->pending = -1;
	}
	if (w->last < 0)
		return;
	if (!told)
		tell_lapse(w, LAPSE_ENDED, WIFSIGNALED(status) ? WTERMSIG(status) : -WEXITSTATUS(status));
	if (w->restarting) /* it did not live to take its table: not again at once */
		w->wait_ticks = RESTART_TICKS;
	else
		restart(w);
}

static void reap(struct watcher *w)
{
	int status = 0;

	if (w->worker >= 0 && waitpid(w->worker_pid, &status, WNOHANG) == w->worker_pid)
		worker_ended(w, status);
}

/* How long the thread of the worker that is silent the longest has been so. Each holds up other opens, so one is enough. */
static int silence(struct watcher *w)
{
	int longest = 0;

	for (int i = 0; i < BEATS; i++) {
		uint64_t beat = READ(w->setup.shared->beats[i]);
		bool runs = beat != 0 || i == BEAT_CONTROL; /* readers start when they are needed */

		w->silent[i] = runs && beat == w->beats[i] ? w->silent[i] + 1 : 0;
		w->beats[i] = beat;
		if (w->silent[i] > longest)
			longest = w->silent[i];
	}
	return longest;
}

static void tick(struct watcher *w)
{
	COUNT(w->setup.shared->watcher_beat);
	if (w->worker < 0) {
		if (w->last >= 0 && w->wait_ticks-- <= 0)
			restart(w);
		return;
	}
	w->silent_ticks = silence(w);
	if (w->silent_ticks == HUNG_TICKS) {
		COUNT(w->setup.shared->hung);
		tell_lapse(w, LAPSE_HUNG, HUNG_TICKS * TICK_MS);
		kill(w->worker_pid, SIGKILL);
	}
}

/* ---- Messages ---- */

static bool from_agent(struct watcher *w)
{
	struct control message;
	int fd;

	if (!control_receive(w->agent, &message, &fd))
		return false;
	if (message.type != MSG_TABLE || fd < 0 || w->pending >= 0) {
		reply(w, message.generation, EBUSY, "a table is being taken over, or the message is not one");
		if (fd >= 0)
			close(fd);
		return true;
	}
	if ((w->worker < 0 && !start_worker(w)) || !give_table(w, fd, message.generation)) {
		reply(w, message.generation, errno, "start the worker");
		close(fd);
		return true;
	}
	w->pending = fd;
	w->pending_generation = message.generation;
	return true;
}

static void from_worker(struct watcher *w)
{
	struct control message;
	int fd;

	if (!control_receive(w->worker, &message, &fd))
		return; /* it is ending: reap() tells */
	if (fd >= 0)
		close(fd);
	if (w->restarting) {
		w->restarting = false;
		tell_lapse(w, message.error ? LAPSE_RESTART_FAILED : LAPSE_RESTARTED, message.error);
		if (message.error) {
			kill(w->worker_pid, SIGKILL);
			w->restarting = true; /* so that the next one is not started at once */
		}
		return;
	}
	if (message.error == 0 && w->pending >= 0) {
		if (w->last >= 0)
			close(w->last);
		WRITE(w->setup.shared->lapsed, 0);
		w->last = w->pending;
		w->last_generation = w->pending_generation;
	} else if (w->pending >= 0) {
		close(w->pending);
	}
	w->pending = -1;
	control_send(w->agent, &message, -1);
}

static int64_t now_ms(void)
{
	struct timespec t;

	clock_gettime(CLOCK_MONOTONIC, &t);
	return (int64_t)t.tv_sec * 1000 + t.tv_nsec / 1000000;
}

static void watch(struct watcher *w)
{
	int64_t next = now_ms() + TICK_MS;

	for (;;) {
		struct pollfd polled[] = {{w->agent, POLLIN, 0}, {w->worker, POLLIN, 0}, {w->worker_gone, POLLIN, 0}};
		int64_t left = next - now_ms();

		poll(polled, 3, left > 0 ? (int)left : 0);
		if (polled[1].revents & POLLIN)
			from_worker(w);
		reap(w);
		if (polled[0].revents && !from_agent(w))
			break;
		if (now_ms() >= next) {
			tick(w);
			next = now_ms() + TICK_MS;
		}
	}
	if (w->worker >= 0) {
		struct pollfd gone = {w->worker_gone, POLLIN, 0};

		kill(w->worker_pid, SIGKILL);
		poll(&gone, 1, 1000); /* so that whoever waits for us knows that enforcement has ended */
		waitpid(w->worker_pid, NULL, WNOHANG);
	}
}

static void prepare(void)
{
	struct rlimit files = {65536, 65536};
	int fd = open("/proc/self/oom_score_adj", O_WRONLY | O_CLOEXEC);

	if (fd >= 0) { /* best effort: others are better victims */
		if (write(fd, "-900", 4) != 4)
			errno = 0;
		close(fd);
	}
	setrlimit(RLIMIT_NOFILE, &files);
	setpriority(PRIO_PROCESS, 0, -15);
	signal(SIGPIPE, SIG_IGN);
	signal(SIGINT, SIG_IGN);
	signal(SIGHUP, SIG_IGN);
	if (chdir("/") != 0)
		errno = 0;
}

static int try_open(const char *path)
{
	return open(path, O_RDONLY | O_CLOEXEC) >= 0 ? 0 : errno;
}

int main(int argc, char **argv)
{
	struct watcher w = {.worker = -1, .worker_gone = -1, .last = -1, .pending = -1};

	if (argc == 2 && strcmp(argv[1], "--decide") == 0)
		return decide_main();
	if (argc == 3 && strcmp(argv[1], "--open") == 0)
		return try_open(argv[2]);
	if (argc != 4) {
		fprintf(stderr, "usage: responder CONTROL RECORDS SHARED; started by the garrison minion\n");
		return 2;
	}
	w.agent = atoi(argv[1]);
	w.setup.records = atoi(argv[2]);
	w.setup.shared = mmap(NULL, SHARED_BYTES, PROT_READ | PROT_WRITE, MAP_SHARED, atoi(argv[3]), 0);
	if (w.setup.shared == MAP_FAILED) {
		perror("responder: map the shared page");
		return 2;
	}
	w.setup.agent = getppid();
	w.setup.watcher = getpid();
	prepare();
	watch(&w);
	return 0;
}

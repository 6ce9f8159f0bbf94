/*
 * Tasks that open and start what rules are about, as fast as they can, and count verdicts that are wrong. See race.py for the world.
 *
 * work    opens and starts until SIGTERM; then prints "done N wrong N closed N", and of the first wrong verdict what it was.
 *         What may be refused to this program and not to another is told by its own name: "two".
 * churn   renames a directory, mounts and unmounts another over and over until SIGTERM.
 * Otherwise does nothing.
 */
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mount.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

#define COUNT(x) (sizeof(x) / sizeof((x)[0]))

enum want { PASSES, REFUSED, REFUSED_TO_TWO, EITHER };

struct check {
	const char *path;
	int flags;
	enum want want;
	int moves; /* its directory is renamed or unmounted meanwhile: it may be gone, and the way to it may be told as unknown */
};

static const struct check passing[] = {
	{"/race/deep/a/b/c/free", O_RDONLY, PASSES},
	{"/race/links/yes", O_RDONLY, PASSES}, /* one inode with "no" */
	{"/race/deep/a/b/free", O_RDWR, PASSES},
	{"/race/m/x/free", O_RDONLY, PASSES, 1},
	{"/race/ro/conf", O_RDONLY, PASSES},
	{"/race/m/y/free", O_RDONLY, PASSES, 1},
	{"/race/links/yes", O_RDWR, PASSES},
	{"/race/bind/a/b/c/free", O_RDONLY, PASSES, 1},
};
static const struct check refused[] = {
	{"/race/deep/a/b/c/secret", O_RDONLY, REFUSED},
	{"/race/links/no", O_RDONLY, REFUSED},
	{"/race/src", O_RDONLY, REFUSED_TO_TWO},
	{"/race/m/x/no", O_RDONLY, REFUSED, 1},
	{"/race/flip", O_RDONLY, EITHER}, /* by one generation, not by the other */
	{"/race/m/y/no", O_RDONLY, REFUSED, 1},
	{"/race/ro/conf", O_WRONLY, REFUSED},
	{"/race/bind/a/b/c/secret", O_RDONLY, REFUSED, 1},
};

static volatile sig_atomic_t ending;
static unsigned long done, wrong, closed;
static char first_wrong[256];
static int is_two;

static void end(int number)
{
	ending = number;
}

static void judge(const char *what, enum want want, int moves, int error)
{
	if (want == REFUSED_TO_TWO)
		want = is_two ? REFUSED : PASSES;
	done++;
	if (want == EITHER ? !error || error == EPERM : error == (want == REFUSED ? EPERM : 0))
		return;
	if (moves && error == ENOENT)
		return;
	if (moves && want == PASSES && error == EPERM) {
		closed++;
		return;
	}
	if (!wrong++)
		snprintf(first_wrong, sizeof(first_wrong), "%s: %s", what, error ? strerror(error) : "passed");
}

static void try(const struct check *check)
{
	int fd = open(check->path, check->flags);

	judge(check->path, check->want, check->moves, fd < 0 ? errno : 0);
	if (fd >= 0)
		close(fd);
}

static void try_start(const char *program, enum want want)
{
	static volatile int error; /* written by the child, whose memory is the parent's until it has started something else */
	pid_t pid;

	error = 0;
	pid = vfork();
	if (!pid) {
		execl(program, program, (char *)0);
		error = errno;
		_exit(1);
	}
	while (waitpid(pid, NULL, 0) < 0 && errno == EINTR)
		;
	judge(program, want, 0, error);
}

static void work(void)
{
	for (unsigned n = getpid(); !ending; n++) {
		try(&passing[n % COUNT(passing)]);
		if (n % 16 == 0)
			try(&refused[n / 16 % COUNT(refused)]);
		if (n % 512 == 0)
			try_start(n & 512 ? "/race/bin/tool" : "/race/bin/fine", n & 512 ? REFUSED : PASSES);
	}
	printf("done %lu wrong %lu closed %lu %s\n", done, wrong, closed, first_wrong);
}

static void churn(void)
{
	struct timespec pause = {.tv_nsec = 2000000};

	for (unsigned n = 0; !ending; n++) {
		if (rename(n & 1 ? "/race/m/y" : "/race/m/x", n & 1 ? "/race/m/x" : "/race/m/y"))
			perror("rename");
		if (n & 1 ? umount2("/race/bind", MNT_DETACH) : mount("/race/deep", "/race/bind", 0, MS_BIND, 0))
			perror("mount");
		nanosleep(&pause, 0);
	}
	umount2("/race/bind", MNT_DETACH);
}

int main(int argc, char **argv)
{
	const char *name = strrchr(argv[0], '/');

	signal(SIGTERM, end);
	is_two = name && !strcmp(name, "/two");
	if (argc > 1 && !strcmp(argv[1], "work"))
		work();
	if (argc > 1 && !strcmp(argv[1], "churn"))
		churn();
	return 0;
}

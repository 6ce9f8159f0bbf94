/*
 * Counts what operations cost, on a machine whose clock counts instructions. Prints a line for each: name, instructions of the least
 * of ROUNDS rounds; and "refused N": of the arguments, which are paths, how many cannot be opened.
 *
 * open      open and close of one file that was opened before
 * cold      open and close of files that were never opened; names and inodes are in memory
 * exec      vfork, exec of a static program, wait
 * linked    the same of one with a dynamic linker and libc
 * connect   connect of a UDP socket
 * rename    of a file
 */
#define _GNU_SOURCE
#include <arpa/inet.h>
#include <fcntl.h>
#include <sched.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/mman.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

#define ROUNDS 7
#define OPENS 2000
#define COLD 200
#define EXECS 50
#define LINKED 20
#define CONNECTS 500
#define RENAMES 200

static char cold[ROUNDS * COLD][64];
static int next_cold, udp;

static void die(const char *what)
{
	perror(what);
	exit(1);
}

static double now(void)
{
	struct timespec t;

	clock_gettime(CLOCK_MONOTONIC, &t);
	return t.tv_sec * 1e9 + t.tv_nsec;
}

static void opens(int n)
{
	while (n--) {
		int fd = open("/srv/cost/d/e/f/file", O_RDONLY);

		if (fd < 0)
			die("open");
		close(fd);
	}
}

static void opens_cold(int n)
{
	while (n--) {
		int fd = open(cold[next_cold++], O_RDONLY);

		if (fd < 0)
			die("open");
		close(fd);
	}
}

static void renames(int n)
{
	for (int i = 0; i < n; i++)
		if (rename(i & 1 ? "/srv/cost/b" : "/srv/cost/a", i & 1 ? "/srv/cost/a" : "/srv/cost/b"))
			die("rename");
}

static void starts(const char *program, int n)
{
	while (n--) {
		pid_t pid = vfork();
		int status;

		if (!pid) {
			execl(program, program, (char *)0);
			_exit(1);
		}
		if (waitpid(pid, &status, 0) < 0 || status)
			die("exec");
	}
}

static void execs(int n)
{
	starts("/opt/cost/b/nothing", n);
}

static void linked(int n)
{
	starts("/usr/bin/true", n);
}

static void connects(int n)
{
	struct sockaddr_in to = {.sin_family = AF_INET, .sin_port = htons(7)};

	to.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
	while (n--)
		if (connect(udp, (struct sockaddr *)&to, sizeof(to)))
			die("connect");
}

static void measure(const char *what, void (*run)(int), int n)
{
	double least = 1e18;

	for (int round = 0; round < ROUNDS; round++) {
		double began = now(), each;

		run(n);
		each = (now() - began) / n;
		if (each < least)
			least = each;
	}
	printf("%s %.0f\n", what, least);
}

int main(int argc, char **argv)
{
	struct sched_param fifo = {.sched_priority = 50};
	struct stat found;
	int refused = 0;

	for (int i = 0; i < ROUNDS * COLD; i++) {
		snprintf(cold[i], sizeof(cold[i]), "/srv/cost/d/e/f/cold-%d", i);
		if (mknod(cold[i], S_IFREG | 0644, 0) || stat(cold[i], &found))
			die(cold[i]);
	}
	udp = socket(AF_INET, SOCK_DGRAM, 0);
	mlockall(MCL_CURRENT);
	if (sched_setscheduler(0, SCHED_FIFO, &fifo))
		die("sched_setscheduler");
	measure("open", opens, OPENS);
	measure("cold", opens_cold, COLD);
	measure("exec", execs, EXECS);
	measure("linked", linked, LINKED);
	measure("connect", connects, CONNECTS);
	measure("rename", renames, RENAMES);
	for (int i = 1; i < argc; i++)
		refused += open(argv[i], O_RDONLY) < 0;
	printf("refused %d\n", refused);
	return 0;
}

/*
 * One of several programs that act under rules. Built static, so that it opens nothing by itself.
 *
 * With "act": answers a line on stdin with a line on stdout. "r PATH" and "w PATH" open a file, "x PATH ARG..." starts a program and
 * waits for it. The answer is OK, the number of the error, or "killed N".
 * With "ask SOCKET": sends stdin there and prints what comes back.
 * Otherwise does nothing.
 */
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <sys/wait.h>
#include <unistd.h>

static volatile int failed; /* written by the child, whose memory is the parent's until it has started something else */

static int start(char *path)
{
	char *argv[16] = {path}, *next = strchr(path, ' ');
	int status, argc = 1;
	pid_t pid;

	for (; next && argc < 15; next = strchr(next, ' ')) {
		*next++ = 0;
		argv[argc++] = next;
	}
	failed = 0;
	pid = vfork();
	if (!pid) {
		execv(path, argv);
		failed = errno;
		_exit(1);
	}
	if (pid < 0 || waitpid(pid, &status, 0) != pid)
		return errno;
	return failed ?: WIFSIGNALED(status) ? -WTERMSIG(status) : 0;
}

static int act(void)
{
	char line[4096];

	while (fgets(line, sizeof(line), stdin)) {
		char *path = line + 2;
		int result;

		line[strcspn(line, "\n")] = 0;
		if (*line == 'x') {
			result = start(path);
		} else {
			result = open(path, *line == 'w' ? O_WRONLY : O_RDONLY);
			if (result < 0) {
				result = errno;
			} else {
				close(result);
				result = 0;
			}
		}
		if (result < 0)
			printf("killed %d\n", -result);
		else if (result)
			printf("%d\n", result);
		else
			puts("OK");
		fflush(stdout);
	}
	return 0;
}

static int ask(const char *path)
{
	struct sockaddr_un to = {.sun_family = AF_UNIX};
	int fd = socket(AF_UNIX, SOCK_STREAM, 0);
	char block[65536];
	ssize_t n;

	strncpy(to.sun_path, path, sizeof(to.sun_path) - 1);
	if (connect(fd, (struct sockaddr *)&to, sizeof(to)))
		return 1;
	while ((n = read(0, block, sizeof(block))) > 0)
		if (write(fd, block, n) != n)
			return 1;
	shutdown(fd, SHUT_WR);
	while ((n = read(fd, block, sizeof(block))) > 0)
		if (write(1, block, n) != n)
			return 1;
	return n < 0;
}

int main(int argc, char **argv)
{
	if (argc > 1 && !strcmp(argv[1], "act"))
		return act();
	if (argc > 2 && !strcmp(argv[1], "ask"))
		return ask(argv[2]);
	return 0;
}

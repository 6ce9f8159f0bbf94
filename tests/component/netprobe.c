/* Tries one network operation and says how it ended: `netprobe OP [ADDRESS PORT [TIMES]]` prints each errno and how often. */
#define _GNU_SOURCE
#include <arpa/inet.h>
#include <errno.h>
#include <fcntl.h>
#include <linux/if_ether.h>
#include <netinet/in.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/socket.h>
#include <time.h>
#include <unistd.h>

static struct sockaddr_storage address;
static socklen_t length;
static int family = AF_INET;

static void parse(const char *text, int port)
{
	struct sockaddr_in *v4 = (void *)&address;
	struct sockaddr_in6 *v6 = (void *)&address;

	if (strchr(text, ':')) {
		family = AF_INET6;
		*v6 = (struct sockaddr_in6){.sin6_family = AF_INET6, .sin6_port = htons(port)};
		length = sizeof(*v6);
		inet_pton(AF_INET6, text, &v6->sin6_addr);
	} else {
		*v4 = (struct sockaddr_in){.sin_family = AF_INET, .sin_port = htons(port)};
		length = sizeof(*v4);
		inet_pton(AF_INET, text, &v4->sin_addr);
	}
}

static int with_socket(const char *op, int type)
{
	int fd = socket(family, type, 0), result;

	if (fd < 0)
		return errno;
	if (!strcmp(op, "bind") || !strcmp(op, "bindu"))
		result = bind(fd, (void *)&address, length);
	else if (!strcmp(op, "udp"))
		result = sendto(fd, "x", 1, 0, (void *)&address, length);
	else if (!strcmp(op, "tfo"))
		result = sendto(fd, "x", 1, MSG_FASTOPEN, (void *)&address, length);
	else
		result = connect(fd, (void *)&address, length);
	result = result < 0 ? errno : 0;
	close(fd);
	return result;
}

static int made(int fd)
{
	int result = fd < 0 ? errno : 0;

	close(fd);
	return result;
}

static int try(const char *op)
{
	if (!strcmp(op, "raw"))
		return made(socket(AF_INET, SOCK_RAW, IPPROTO_ICMP));
	if (!strcmp(op, "raw6"))
		return made(socket(AF_INET6, SOCK_RAW, IPPROTO_ICMPV6));
	if (!strcmp(op, "packet"))
		return made(socket(AF_PACKET, SOCK_RAW, htons(ETH_P_ALL)));
	if (!strcmp(op, "unix"))
		return made(socket(AF_UNIX, SOCK_STREAM, 0));
	if (!strcmp(op, "udp") || !strcmp(op, "udpc") || !strcmp(op, "bindu"))
		return with_socket(op, SOCK_DGRAM);
	return with_socket(op, SOCK_STREAM);
}

/* Do the rest from an image that has no path. */
static int from_memory(char **argv)
{
	static char image[1 << 20];
	int from = open("/proc/self/exe", O_RDONLY), to = memfd_create("probe", 0);
	ssize_t n;

	while ((n = read(from, image, sizeof(image))) > 0)
		if (write(to, image, n) != n)
			return 2;
	argv[1] = argv[0];
	fexecve(to, argv + 1, environ);
	return 2;
}

int main(int argc, char **argv)
{
	long times = argc > 4 ? atol(argv[4]) : 1, counts[256] = {}, i;
	struct timespec a, b;

	if (argc > 1 && !strcmp(argv[1], "memfd"))
		return from_memory(argv);
	if (argc > 3)
		parse(argv[2], atoi(argv[3]));
	clock_gettime(CLOCK_MONOTONIC, &a);
	for (i = 0; i < times; i++)
		counts[try(argv[1]) & 255]++;
	clock_gettime(CLOCK_MONOTONIC, &b);
	for (i = 0; i < 256; i++)
		if (counts[i])
			printf("%s:%ld\n", i ? strerrorname_np(i) : "ok", counts[i]);
	fprintf(stderr, "%.0f\n", ((b.tv_sec - a.tv_sec) * 1e9 + b.tv_nsec - a.tv_nsec) / times);
	return 0;
}

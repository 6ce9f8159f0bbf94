/* One small static program under many names: what a test wants a program to do, and nothing else (no loader, no libraries).
 *
 * probe ACTION [ARGUMENT...]: exit code 0 when it could be done, 1 with the error's text on stderr when it could not.
 * Anything that is no action ("--version", "-m random") is done at once.
 */
#define _GNU_SOURCE
#include <arpa/inet.h>
#include <err.h>
#include <fcntl.h>
#include <linux/if_ether.h>
#include <linux/if_packet.h>
#include <stdio.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/sendfile.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/un.h>
#include <unistd.h>

#define HERE "127.0.0.1"
enum { PORT = 7000, DNS_PORT = 53, LABEL_MAX = 63 };

static int must(int result, const char *what)
{
	if (result < 0)
		err(1, "%s", what);
	return result;
}

static void opens(const char *path, int flags)
{
	char bytes[64];
	int fd = must(open(path, flags | O_CLOEXEC, 0644), path);

	if (flags & O_WRONLY)
		must(write(fd, "x\n", 2), path);
	else
		must(read(fd, bytes, sizeof bytes), path);
	close(fd);
}

static void sends(int kind, const char *address, int port, const char *bytes, size_t size)
{
	struct sockaddr_in to = { .sin_family = AF_INET, .sin_port = htons(port), .sin_addr.s_addr = inet_addr(address) };
	int fd = must(socket(AF_INET, kind, 0), "socket");

	must(connect(fd, (struct sockaddr *)&to, sizeof to), "connect");
	must(send(fd, bytes, size, 0), "send");
}

/* Asks ``server`` for the address of ``name``, as a resolver does, and does not wait for the answer. */
static void resolves(const char *name, const char *server)
{
	char question[512] = { 0x12, 0x34, 1, 0, 0, 1 };
	char *at = question + 12;

	while (*name) {
		size_t length = strcspn(name, ".");

		if (!length || length > LABEL_MAX || at + length + 6 > question + sizeof question)
			errx(1, "not a name");
		*at++ = (char)length;
		at = (char *)memcpy(at, name, length) + length;
		name += length + (name[length] == '.');
	}
	memcpy(at, "\0\0\1\0\1", 5);
	sends(SOCK_DGRAM, server, DNS_PORT, question, at + 5 - question);
}

/* Starts this program's bytes from memory. */
static void fileless(char **argv)
{
	char *environment[] = { NULL };
	struct stat self;
	int from = must(open("/proc/self/exe", O_RDONLY | O_CLOEXEC), "/proc/self/exe");
	int to = must(memfd_create("probe", MFD_CLOEXEC), "memfd_create");

	must(fstat(from, &self), "fstat");
	must(sendfile(to, from, NULL, self.st_size), "sendfile");
	argv[0] = "probe";
	argv[1] = "done";
	must(syscall(SYS_execveat, to, "", argv, environment, AT_EMPTY_PATH), "execveat");
}

/* Announces an address, as arping does. */
static void announces(void)
{
	struct sockaddr_ll lo = { .sll_family = AF_PACKET, .sll_protocol = htons(ETH_P_ARP), .sll_ifindex = 1, .sll_halen = 6 };
	char frame[28] = { 0, 1, 8, 0, 6, 4, 0, 1 };
	int fd = must(socket(AF_PACKET, SOCK_DGRAM, htons(ETH_P_ARP)), "socket");

	must(sendto(fd, frame, sizeof frame, 0, (struct sockaddr *)&lo, sizeof lo), "sendto");
}

/* Hands standard input to the socket at ``path`` and prints the answer, one line. */
static void asks(const char *path)
{
	struct sockaddr_un to = { .sun_family = AF_UNIX };
	char bytes[1 << 16];
	int fd = must(socket(AF_UNIX, SOCK_STREAM, 0), "socket");
	ssize_t got;

	strncpy(to.sun_path, path, sizeof to.sun_path - 1);
	must(connect(fd, (struct sockaddr *)&to, sizeof to), path);
	while ((got = must(read(0, bytes, sizeof bytes), "stdin")) > 0)
		must(send(fd, bytes, got, 0), "send"); /* a blocking stream takes it whole */
	must(shutdown(fd, SHUT_WR), "shutdown");
	while ((got = must(read(fd, bytes, sizeof bytes), "read")) > 0)
		must(write(1, bytes, got), "stdout");
}

int main(int argc, char **argv)
{
	const char *action = argc > 1 ? argv[1] : "", *what = argc > 2 ? argv[2] : "";

	if (!strcmp(action, "read"))
		opens(what, O_RDONLY);
	else if (!strcmp(action, "write"))
		opens(what, O_WRONLY | O_APPEND);
	else if (!strcmp(action, "create"))
		opens(what, O_WRONLY | O_CREAT);
	else if (!strcmp(action, "unlink"))
		must(syscall(SYS_unlink, what), what); /* rm(1) calls unlinkat */
	else if (!strcmp(action, "rmdir"))
		must(rmdir(what), what);
	else if (!strcmp(action, "tcp"))
		sends(SOCK_STREAM, HERE, PORT, "x", 1);
	else if (!strcmp(action, "udp"))
		sends(SOCK_DGRAM, HERE, PORT, "x", 1);
	else if (!strcmp(action, "raw"))
		must(socket(AF_INET, SOCK_RAW, IPPROTO_RAW), "socket");
	else if (!strcmp(action, "icmp"))
		must(socket(AF_INET, SOCK_RAW, IPPROTO_ICMP), "socket");
	else if (!strcmp(action, "sctp"))
		must(socket(AF_INET, SOCK_STREAM, IPPROTO_SCTP), "socket");
	else if (!strcmp(action, "arp"))
		announces();
	else if (!strcmp(action, "resolve"))
		resolves(what, argc > 3 ? argv[3] : HERE);
	else if (!strcmp(action, "exec"))
		must(execv(what, argv + 2), what);
	else if (!strcmp(action, "fileless"))
		fileless(argv);
	else if (!strcmp(action, "ask"))
		asks(what);
	return 0;
}

/* Ways to open a file that do not look like one. Prints OK or the number of the error. Built static, not position-independent. */
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <linux/io_uring.h>
#include <pthread.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <unistd.h>

static char path[4096]; /* below 4 GiB, as the 32-bit call needs */

static int by_compat_call(void)
{
	long result;

	asm volatile("int $0x80" : "=a"(result) : "a"(5), "b"(path), "c"(O_RDONLY), "d"(0) : "memory");
	return result;
}

/* Opens the path by a ring of the kernel's. */
static int by_ring(unsigned setup, unsigned char how, unsigned submitted, unsigned enter)
{
	struct io_uring_params p = {.flags = setup, .sq_thread_idle = 1000};
	int ring = syscall(SYS_io_uring_setup, 4, &p);
	char *sq, *cq;
	struct io_uring_sqe *sqes;

	if (ring < 0)
		return -errno;
	sq = mmap(0, p.sq_off.array + p.sq_entries * 4, PROT_READ | PROT_WRITE, MAP_SHARED, ring, IORING_OFF_SQ_RING);
	cq = mmap(0, p.cq_off.cqes + p.cq_entries * sizeof(struct io_uring_cqe), PROT_READ | PROT_WRITE, MAP_SHARED, ring,
		  IORING_OFF_CQ_RING);
	sqes = mmap(0, p.sq_entries * sizeof(*sqes), PROT_READ | PROT_WRITE, MAP_SHARED, ring, IORING_OFF_SQES);
	memset(sqes, 0, sizeof(*sqes));
	sqes->opcode = IORING_OP_OPENAT;
	sqes->fd = AT_FDCWD;
	sqes->addr = (unsigned long)path;
	sqes->open_flags = O_RDONLY;
	sqes->flags = how;
	((unsigned *)(sq + p.sq_off.array))[0] = 0;
	__atomic_add_fetch((unsigned *)(sq + p.sq_off.tail), 1, __ATOMIC_RELEASE);
	if (syscall(SYS_io_uring_enter, ring, submitted, 1, IORING_ENTER_GETEVENTS | enter, 0, 0) < 0)
		return -errno;
	return ((struct io_uring_cqe *)(cq + p.cq_off.cqes))->res;
}

static int by_io_uring(void)
{
	return by_ring(0, IOSQE_ASYNC, 1, 0); /* by a worker thread */
}

/* The same, handed over by a thread of the kernel's that polls the ring. */
static int by_polled_ring(void)
{
	return by_ring(IORING_SETUP_SQPOLL, 0, 0, IORING_ENTER_SQ_WAKEUP);
}

static volatile int ending;

static void *swap_links(void *directory)
{
	char link[4096], other[4096];

	snprintf(link, sizeof(link), "%s/link", (char *)directory);
	snprintf(other, sizeof(other), "%s/other", (char *)directory);
	while (!ending)
		syscall(SYS_renameat2, AT_FDCWD, link, AT_FDCWD, other, 2 /* RENAME_EXCHANGE */);
	return 0;
}

/* DIR/link and DIR/other are links that change places while DIR/link is opened; counts what was read that begins with S. */
static int while_links_change(void)
{
	pthread_t thread;
	char link[4200], c;
	int i, fd, secrets = 0, opened = 0;

	pthread_create(&thread, 0, swap_links, path);
	snprintf(link, sizeof(link), "%s/link", path);
	for (i = 0; i < 20000; i++) {
		fd = open(link, O_RDONLY);
		if (fd < 0)
			continue;
		opened++;
		secrets += read(fd, &c, 1) == 1 && c == 'S';
		close(fd);
	}
	ending = 1;
	pthread_join(thread, 0);
	printf("%d %d\n", opened, secrets);
	exit(0);
}

static long wrong;

static void *open_both(void *times)
{
	char other[4200];
	long i;
	int fd;

	snprintf(other, sizeof(other), "%s-free", path);
	for (i = 0; i < (long)times; i++) {
		fd = open(i & 1 ? other : path, O_RDONLY);
		if ((fd >= 0) != (i & 1))
			__sync_fetch_and_add(&wrong, 1);
		if (fd >= 0)
			close(fd);
	}
	return 0;
}

/* Eight threads open PATH, which must be refused, and PATH-free, which must not; counts what was wrong. */
static int race(long times)
{
	pthread_t threads[8];
	int i;

	for (i = 0; i < 8; i++)
		pthread_create(&threads[i], 0, open_both, (void *)times);
	for (i = 0; i < 8; i++)
		pthread_join(threads[i], 0);
	printf("%ld\n", wrong);
	exit(0);
}

/* Opens PATH over and over, and once amid that PATH-other; counts both. */
static int flood(long times)
{
	char other[4200];
	long i, opened = 0, refused = 0;
	int fd;

	snprintf(other, sizeof(other), "%s-other", path);
	for (i = 0; i <= times; i++) {
		fd = open(i == times / 2 ? other : path, O_RDONLY);
		if (fd < 0)
			refused++;
		else
			opened++, close(fd);
	}
	printf("%ld %ld\n", opened, refused);
	exit(0);
}

int main(int argc, char **argv)
{
	int result;

	snprintf(path, sizeof(path), "%s", argv[2]);
	if (!strcmp(argv[1], "race"))
		race(atol(argv[3]));
	if (!strcmp(argv[1], "flood"))
		flood(atol(argv[3]));
	result = !strcmp(argv[1], "compat") ? by_compat_call() : !strcmp(argv[1], "uring") ? by_io_uring() : !strcmp(argv[1], "sqpoll") ? by_polled_ring() : while_links_change();
	if (result < 0)
		printf("%d\n", -result);
	else
		puts("OK");
	return 0;
}

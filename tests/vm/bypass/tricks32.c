/* A program of 32 bits without a library: opens argv[1], or with a second argument starts it. Prints OK or ERR; exits with the error. */
static int call(int number, const void *a, const void *b, const void *c)
{
	int result;

	asm volatile("int $0x80" : "=a"(result) : "a"(number), "b"(a), "c"(b), "d"(c) : "memory");
	return result;
}

void run(const char **stack)
{
	const char *path = stack[2], *argv[] = {path, "--version", 0};
	int starts = (int)stack[0] > 2;
	int result = starts ? call(11, path, argv, 0) : call(5, path, 0, 0);

	call(4, (void *)1, result < 0 ? "ERR\n" : "OK\n", (void *)(result < 0 ? 4 : 3));
	call(1, (void *)(result < 0 ? -result : 0), 0, 0);
}

asm(".globl _start\n_start:\n\tpush %esp\n\tcall run\n");

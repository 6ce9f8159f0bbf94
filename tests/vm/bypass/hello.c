/* A static program that the kernel can also load as an interpreter: prints that it ran. */
void _start(void)
{
	long result;

	asm volatile("syscall" : "=a"(result) : "a"(1), "D"(1), "S"("ran\n"), "d"(4) : "rcx", "r11", "memory");
	asm volatile("syscall" : : "a"(231), "D"(0));
}

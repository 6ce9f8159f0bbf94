"""What makes rules hold in the kernel: one abstract class, several backends."""

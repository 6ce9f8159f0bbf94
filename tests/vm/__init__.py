"""Promises that only a kernel of a test's own can show: BPF LSM, reboots, power cuts. Run by ``./dev vm-test``."""

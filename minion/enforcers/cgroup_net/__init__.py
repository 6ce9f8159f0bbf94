"""Network rules through cgroup BPF programs."""

"""BPF programs (CO-RE) and their loader over libbpf."""

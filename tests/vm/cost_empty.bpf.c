// SPDX-License-Identifier: GPL-2.0-only
/* Programs that do nothing, on the hooks whose cost is measured: what any BPF LSM costs. */
#include <linux/bpf.h>

#include <bpf/bpf_helpers.h>
#include <bpf/bpf_tracing.h>

SEC("lsm/file_open") int BPF_PROG(empty_open, void *file, int ret)
{
	return ret;
}

SEC("lsm/bprm_check_security") int BPF_PROG(empty_exec, void *bprm, int ret)
{
	return ret;
}

SEC("lsm/socket_connect") int BPF_PROG(empty_connect, void *sock, void *address, int length, int ret)
{
	return ret;
}

char LICENSE[] SEC("license") = "GPL";

/* SPDX-License-Identifier: GPL-2.0-only */
/* A system call's number and arguments, out of the registers of whichever machine this is. */
#ifndef GARRISON_CALL_REGISTERS_H
#define GARRISON_CALL_REGISTERS_H

#include "kernel_types.h"

#include <bpf/bpf_core_read.h>
#include <bpf/bpf_helpers.h>

#define TS_COMPAT 0x0002	     /* arch/x86/include/asm/thread_info.h */
#define TIF_32BIT 22		     /* arch/arm64/include/asm/thread_info.h */
#define X32_SYSCALL_BIT 0x40000000UL /* arch/x86/include/uapi/asm/unistd.h */

#pragma clang attribute push(__attribute__((preserve_access_index)), apply_to = record)

struct pt_regs___x86 {
	unsigned long di, si, dx, r10, r8, r9, orig_ax;
};

struct pt_regs___arm64 {
	__u64 regs[31];
	int syscallno;
};

struct thread_info___x86 {
	__u32 status;
};

struct thread_info___arm64 {
	unsigned long flags;
};

struct task_struct___x86 {
	struct thread_info___x86 thread_info;
};

struct task_struct___arm64 {
	struct thread_info___arm64 thread_info;
};

#pragma clang attribute pop

/* Whether the current task is in a 32-bit call, whose numbers are others. x86: by call; arm64: by program. */
static __always_inline int is_compat(__u64 call)
{
	struct task_struct___x86 *x86 = (void *)bpf_get_current_task_btf();
	struct task_struct___arm64 *arm64 = (void *)x86;

	if (bpf_core_field_exists(x86->thread_info.status))
		return (x86->thread_info.status & TS_COMPAT) || (call & ~0x3ffUL) == X32_SYSCALL_BIT;
	return arm64->thread_info.flags >> TIF_32BIT & 1;
}

static __always_inline __u64 call_of(const void *regs)
{
	const struct pt_regs___x86 *x86 = regs;
	const struct pt_regs___arm64 *arm64 = regs;

	if (bpf_core_field_exists(x86->orig_ax))
		return BPF_CORE_READ(x86, orig_ax);
	return BPF_CORE_READ(arm64, syscallno);
}

static __always_inline void read_args(__u64 *args, const void *regs)
{
	const struct pt_regs___x86 *x86 = regs;
	const struct pt_regs___arm64 *arm64 = regs;

	if (bpf_core_field_exists(x86->orig_ax)) {
		args[0] = BPF_CORE_READ(x86, di);
		args[1] = BPF_CORE_READ(x86, si);
		args[2] = BPF_CORE_READ(x86, dx);
		args[3] = BPF_CORE_READ(x86, r10);
		args[4] = BPF_CORE_READ(x86, r8);
		args[5] = BPF_CORE_READ(x86, r9);
	} else {
		bpf_core_read(args, 6 * sizeof(*args), &arm64->regs);
	}
}

#endif

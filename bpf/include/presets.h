/* SPDX-License-Identifier: GPL-2.0-only */
/*
 * The decision on presets: what they are about is said by their hooks, who is meant by the rules.
 * Files and dentries are plain numbers here, so that functions can be verified for themselves.
 */
#ifndef GARRISON_PRESETS_H
#define GARRISON_PRESETS_H

#include "subject_rules.h"

#define BIT(preset) (1U << (preset))

static __always_inline const struct subject_head *watching(__u32 presets)
{
	const struct subject_head *head = subject_head(active_copy());

	return head && head->presets & presets ? head : NULL;
}

/* Whether not. What is acted on: ``file``, or ``dentry`` when there is none; 0: memory. Verified for itself. */
__noinline int refuses_preset(__u32 preset, __u32 operation, __u64 file, __u64 dentry)
{
	struct request request = {.operation = operation};
	const struct file *at = (void *)file;
	__u64 outcome;
	int going;

	if (is_exempt(bpf_get_current_task_btf()))
		return 0;
	start_request(&request, &going);
	if (!going)
		return 0;
	request.at.space = ENTITY_PRESET;
	request.at.set = request.at.home = PRESET_SETS | preset;
	request.at.dentry = file ? (__u64)BPF_CORE_READ(at, f_path.dentry) : dentry;
	request.at.mnt = file ? (__u64)BPF_CORE_READ(at, f_path.mnt) : 0;
	outcome = weigh_request(&request);
	if (unpacked(outcome).verdict < VERDICT_AUDIT)
		return 0;
	tell_request(&request, outcome);
	return unpacked(outcome).verdict == VERDICT_BLOCK;
}

/* An argument of the hook as a plain number: what is always there in the verifier's eyes may be NULL all the same. */
static __always_inline __u64 argument(const void *ctx, int number)
{
	__u64 value = 0;

	bpf_probe_read_kernel(&value, sizeof(value), (const __u64 *)ctx + number);
	return value;
}

#endif

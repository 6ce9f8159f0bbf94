// SPDX-License-Identifier: GPL-2.0-only
/*
 * Which programs may use which capabilities.
 *
 * hook           duty
 * lsm/capable    a capability is asked for that the process has: modules before this one have turned away the others
 *
 * The kernel asks very often, so a capability that no rule is about costs one look-up, and one that is allowed to the program
 * three. Where it asks only to know what it may offer (CAP_OPT_NOAUDIT) a refusal holds but is not told, only counted.
 *
 * Never refused: kernel threads, the agent, and the first process, without which there is no machine.
 * Left alone: credentials that are not those of the process (of the opener of a file, of another process), and capabilities for
 * files while the kernel acts with borrowed credentials (overlayfs, nfsd, access(2)): refusing these would show files that are not
 * there to everybody.
 */
#include <linux/bpf.h>

#include "include/subject_rules.h"

#define CAP_OPT_NOAUDIT 2 /* include/linux/security.h */
#define CAPABILITY(n) (1ULL << (n))
/* include/uapi/linux/capability.h: chown dac_override dac_read_search fowner fsetid linux_immutable sys_admin sys_resource mknod
 * lease setfcap mac_override */
#define FILE_CAPABILITIES                                                                                              \
	(CAPABILITY(0) | CAPABILITY(1) | CAPABILITY(2) | CAPABILITY(3) | CAPABILITY(4) | CAPABILITY(9) | CAPABILITY(21) |   \
	 CAPABILITY(24) | CAPABILITY(27) | CAPABILITY(28) | CAPABILITY(31) | CAPABILITY(32))

struct user_namespace;

/* Run by the agent: from now on it is this process that is never refused. */
SEC("syscall") int note_exempt(void *context)
{
	struct task_struct *task = (void *)bpf_get_current_task();
	struct exempt self = {.tgid = BPF_CORE_READ(task, tgid), .start_time = start_of(task)};
	__u32 zero = 0;

	return bpf_map_update_elem(&exempt, &zero, &self, BPF_ANY);
}

/* Whether the process asks for itself, with credentials that are its own where that matters. */
static __always_inline int asks_for_itself(struct task_struct *task, __u64 cred, __u64 bit)
{
	struct task_struct___subject *same = (void *)task;
	__u64 present = (__u64)BPF_CORE_READ(task, cred);

	if (cred != present)
		return 0;
	return !(bit & FILE_CAPABILITIES) || present == (__u64)BPF_CORE_READ(same, real_cred);
}

/* Whether some rule is about the capability when this subject uses it. Falls back as rows do. */
static __always_inline int is_watched(__u32 copy, __u32 subject, __u64 bit)
{
	__u32 class = subject & CLASS_MASK, profile = subject & ~CLASS_MASK;
	void *table = bpf_map_lookup_elem(&class_capabilities, &copy);
	const __u64 *bits = table ? bpf_map_lookup_elem(table, &subject) : NULL;
	const struct subject_head *head;

	if (!bits && table && profile) {
		bits = bpf_map_lookup_elem(table, &profile);
		if (!bits)
			bits = bpf_map_lookup_elem(table, &class);
	}
	if (bits)
		return (*bits & bit) != 0;
	head = subject_head(copy);
	return head && head->anyone & bit;
}

static __always_inline int any_watched(const struct request *request, __u64 bit)
{
	__u32 copy = request->at.copy; /* classes are of the copy in which they were found */

	return is_watched(copy, request->class, bit) || (request->alias && is_watched(copy, request->alias, bit)) ||
	       (request->extra && is_watched(copy, request->extra, bit)) || also_of(request);
}

SEC("lsm/capable")
int BPF_PROG(guard_capable, const struct cred *cred, struct user_namespace *ns, int cap, unsigned int opts, int ret)
{
	struct task_struct *task = bpf_get_current_task_btf();
	struct attempt attempt = {.operation = ON_CAPABLE, .quiet = opts & CAP_OPT_NOAUDIT ? QUIET_ALL : QUIET_REPEATS};
	struct request request = {};
	const struct subject_head *head = subject_head(active_copy());
	__u32 number = cap;
	__u64 bit = CAPABILITY(number & 63);
	int going;

	if (ret || !head || number > 63 || !(head->capabilities & bit))
		return ret;
	if (is_exempt(task) || task->tgid == 1 || !asks_for_itself(task, (__u64)cred, bit))
		return 0;
	identify(&request, &going);
	if (!going || !any_watched(&request, bit))
		return 0;
	attempt.set = CAPABILITY_SETS | number;
	attempt.capability = number;
	return judge(&attempt, ENTITY_CAPABILITY, &request);
}

char LICENSE[] SEC("license") = "GPL";

// SPDX-License-Identifier: GPL-2.0-only
/*
 * Which programs may be started.
 *
 * hook                        duty
 * lsm/bprm_check_security     a program or script is started, and then its interpreter
 * lsm.s/bprm_committed_creds  the arguments are in the new memory: what was let go for their sake is ended if they are not listed
 *
 * Arguments cannot be read while an exec can still be refused: until then they are only in memory that no helper reaches, or in the
 * caller's, which another thread may change. So the program is killed before its first instruction instead.
 *
 * Not covered here: mapping a program without starting it (enforce_maps.bpf.c).
 */
#include <linux/bpf.h>

#include "include/enforce.h"

#define SIGKILL 9

/* What starts a program is its past from when it is started (enforce_maps.bpf.c). A script is checked twice by the same task. */
static __always_inline void note_caller(struct subject *subject)
{
	if (!subject)
		return;
	subject->pending.hash = subject->hash;
	subject->pending.generation = subject->generation;
	subject->pending.class = subject->class ?: subject->alias ?: subject->loaded.class;
}

/* The profile, shifted to where it stands in arg_key.len, when the set's rules for it have a list of their own. */
static __always_inline __u32 own_listing(const struct request *request)
{
	struct arg_key key = {.set = request->at.set, .len = profile_of(request) << 16};
	__u32 copy = request->at.copy;
	void *table = bpf_map_lookup_elem(&args, &copy);

	return key.len && table && bpf_map_lookup_elem(table, &key) ? key.len : 0;
}

/*
 * What is to be done about a start now: ``unlisted``, its outcome if its arguments are not listed, unless it depends on them. Then it is
 * let go, and watched: nothing. What is refused either way is refused now, by the rule that does not ask for arguments. A script is
 * checked again as its interpreter, whose arguments are others: it counts as started with what is not listed.
 */
static __always_inline __u64 settle(struct request *request, struct subject *subject, __u64 bprm, __u64 unlisted)
{
	const struct head *head = head_of(request->at.copy);
	__u64 listed;

	/* Who has left a container would have two lists: none then. */
	if (!head || !head->has_args || also_of(request))
		return unlisted;
	if (!subject)
		subject = bpf_task_storage_get(&subjects, bpf_get_current_task_btf(), 0, BPF_LOCAL_STORAGE_GET_F_CREATE);
	if (!subject)
		return unlisted;
	request->condition |= CONDITION_ARGS;
	listed = weigh_request(request);
	request->condition &= ~CONDITION_ARGS;
	if (listed == unlisted || unpacked(listed).verdict == VERDICT_BLOCK)
		return listed;
	subject->deferred.unlisted = unlisted;
	subject->deferred.listed = listed;
	subject->deferred.dentry = request->at.dentry;
	subject->deferred.mnt = request->at.mnt;
	subject->deferred.generation = request->generation;
	subject->deferred.set = request->at.set;
	subject->deferred.copy = request->at.copy;
	subject->deferred.condition = request->condition;
	subject->deferred.listing = own_listing(request);
	subject->deferred.bprm = bprm;
	return 0;
}

/* Takes back what was let go. Returns its outcome when the present check is of the same start, as its interpreter. */
static __always_inline __u64 undefer(struct subject *subject, __u64 bprm)
{
	__u64 same;

	if (!subject || !subject->deferred.bprm)
		return 0;
	same = subject->deferred.bprm == bprm;
	subject->deferred.bprm = 0;
	return same ? subject->deferred.unlisted : 0;
}

/* Verified for itself. */
__noinline int tell_deferred(__u64 dentry, __u64 mnt, __u32 generation, __u32 operation, __u64 outcome)
{
	struct telling told = {.outcome = unpacked(outcome), .dentry = dentry, .mnt = mnt, .generation = generation};

	if (told.outcome.verdict < VERDICT_AUDIT)
		return 0;
	told.operation = operation;
	return may_tell(&told) ? tell(&told) : 0;
}

SEC("lsm/bprm_check_security") int BPF_PROG(guard_exec, struct linux_binprm *bprm, int ret)
{
	struct request request = {.operation = OP_EXEC};
	struct file *file = bprm->file;
	__u64 number = 0, outcome;
	struct subject *subject;
	int going;

	if (ret)
		return ret;
	bpf_probe_read_kernel(&number, sizeof(number), ctx);
	subject = start_request(&request, &going);
	outcome = undefer(subject, number);
	if (outcome) {
		tell_deferred(subject->deferred.dentry, subject->deferred.mnt, subject->deferred.generation, OP_EXEC, outcome);
		if (unpacked(outcome).verdict == VERDICT_BLOCK)
			return -EPERM;
	}
	note_caller(subject);
	if (!going)
		return 0;
	request.condition |= owner_condition(file->f_inode);
	locate(&request, &file->f_path, file->f_inode, ENTITY_PROCESS);
	outcome = is_free(&request) ? 0 : weigh_request(&request);
	if (unpacked(outcome).verdict >= VERDICT_AUDIT)
		outcome = settle(&request, subject, number, outcome);
	if (unpacked(outcome).verdict < VERDICT_AUDIT)
		return 0;
	tell_request(&request, outcome);
	return unpacked(outcome).verdict == VERDICT_BLOCK ? -EPERM : 0;
}

/* Arguments one after the other, from where the kernel has put them. */
struct args_walk {
	struct subject *subject;
	__u64 at;
	__u64 end;
	__u32 copy;
	__u32 set;
	__u32 unlisted;
	__u32 listing;
};

/* Multiplies and adds bytes with secret numbers; garrison.bpf.pathhash computes the same. */
static __always_inline __u32 hash_arg(const char *arg, struct arg_key *key)
{
	__u64 hash = hash_key[0];
	__u32 i;

	for (i = 0; i < ARG_BYTES; i++) {
		if (!arg[i])
			break;
		hash = (hash ^ (__u8)arg[i]) * hash_factor;
	}
	key->hash = hash ^ hash >> 32;
	key->len = i;
	return i;
}

static long arg_step(__u32 index, void *context)
{
	struct args_walk *walk = context;
	struct arg_key key = {.set = walk->set};
	__u64 n = walk->end - walk->at;
	void *table;
	__u32 len;

	if (n > ARG_BYTES)
		n = ARG_BYTES;
	barrier_var(n);
	walk->unlisted = 1;
	if (!n || n > ARG_BYTES || bpf_copy_from_user(walk->subject->arg, n, (void *)walk->at))
		return 1;
	len = hash_arg(walk->subject->arg, &key);
	if (len >= n)
		return 1;
	walk->at += len + 1;
	key.len |= walk->listing;
	table = bpf_map_lookup_elem(&args, &walk->copy);
	if (index && !(table && bpf_map_lookup_elem(table, &key))) /* the first is the program's name */
		return 1;
	walk->unlisted = 0;
	return 0;
}

SEC("lsm.s/bprm_committed_creds") int BPF_PROG(guard_arguments, struct linux_binprm *bprm)
{
	struct subject *subject = bpf_task_storage_get(&subjects, bpf_get_current_task_btf(), 0, 0);
	struct args_walk walk = {.subject = subject};
	const struct head *head;
	__u64 outcome;
	int argc = bprm->argc;

	if (!subject || !subject->deferred.bprm)
		return 0;
	subject->deferred.bprm = 0;
	walk.copy = subject->deferred.copy;
	walk.set = subject->deferred.set;
	walk.listing = subject->deferred.listing;
	walk.at = bprm->p;
	walk.end = bprm->exec;
	head = head_of(walk.copy);
	if (argc < 2 || !head || head->generation != subject->deferred.generation)
		walk.unlisted = 1; /* without arguments none is listed; of rules that are gone nobody knows */
	else
		bpf_loop(argc, arg_step, &walk, 0);
	outcome = walk.unlisted ? subject->deferred.unlisted : subject->deferred.listed;
	if (unpacked(outcome).verdict == VERDICT_BLOCK)
		bpf_send_signal(SIGKILL);
	tell_deferred(subject->deferred.dentry, subject->deferred.mnt, subject->deferred.generation,
		      unpacked(outcome).verdict == VERDICT_BLOCK ? OP_EXEC_KILLED : OP_EXEC, outcome);
	return 0;
}

char LICENSE[] SEC("license") = "GPL";

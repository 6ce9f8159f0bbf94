// SPDX-License-Identifier: GPL-2.0-only
/*
 * Files that are mapped, not opened or started: programs loaded by something else than the kernel (ld.so PROGRAM, LD_PRELOAD), and
 * shared mappings of files that were open before the rule.
 *
 * hook                            duty
 * lsm/mmap_file, file_mprotect    a file becomes code, or shared memory that can be written; tells ld.so PROGRAM from the rest
 * lsm/bprm_committed_creds        a program was started: what started it is remembered
 * lsm/task_alloc                  a child is what its parent is
 *
 * Only rules speak here: no program lists all its libraries, so postures do not apply. Of what the kernel itself maps for an exec,
 * the program was decided at exec; what it names as its interpreter is decided here, but for the system's own. A mapped program counts
 * like its own process for rules that refuse, never for those that grant.
 *
 * Not covered: a loader of somebody's own that maps nothing as code (reads it into memory; the preset anonymousMapExec refuses that), or
 * that makes the kernel believe it has an interpreter (prctl PR_SET_MM_MAP): what it runs is not known as that program.
 */
#include <linux/bpf.h>

#include "include/enforce.h"

#define PROT_EXEC 4
#define MAP_SHARED 1 /* also a bit of MAP_SHARED_VALIDATE */
#define FMODE_WRITE 2
#define VM_EXEC 4
#define AT_BASE 7      /* include/uapi/linux/auxvec.h */
#define AUXV_PAIRS 12 /* the kernel puts it among the first dozen */

/* Dynamic linkers that the system's own programs ask for. Written by user space. Full: the agent's error. */
struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__uint(max_entries, 16);
	__type(key, struct inode_key);
	__type(value, __u32);
} linkers SEC(".maps");

static __always_inline int is_linker(const struct inode *inode)
{
	struct inode_key key = inode_key_of(inode);

	return bpf_map_lookup_elem(&linkers, &key) != NULL;
}

static __always_inline int is_starting(struct task_struct *task)
{
	return BPF_CORE_READ_BITFIELD(task, in_execve);
}

/*
 * Whether the kernel mapped an interpreter for the program that the current task runs, as it told the program itself. Reads the task's
 * own memory description: no state of ours. Verified for itself.
 */
__noinline int has_interpreter(void)
{
	struct task_struct *task = bpf_get_current_task_btf();
	struct mm_struct *mm = task->mm;
	const unsigned long *words;
	int i;

	if (!mm)
		return 0;
	words = mm->saved_auxv;
	barrier_var(words); /* relocated once: the array may be longer in this kernel, and then its elements cannot be */
	/* A 32-bit program has a pair in each word, and no value of the first is 0. */
	if (words[0] >> 32) {
#pragma unroll
		for (i = 0; i < AUXV_PAIRS; i++)
			if ((words[i] & ~0U) == AT_BASE)
				return words[i] >> 32 != 0;
		return 0;
	}
#pragma unroll
	for (i = 0; i < AUXV_PAIRS; i++)
		if (words[2 * i] == AT_BASE)
			return words[2 * i + 1] != 0;
	return 0;
}

/* The first code that a program without interpreter maps is what it runs: it is a dynamic linker. */
static __always_inline void note_code(struct task_struct *task, const struct request *request)
{
	struct subject *subject = bpf_task_storage_get(&subjects, task, 0, BPF_LOCAL_STORAGE_GET_F_CREATE);

	if (!subject)
		return;
	subject->loaded.generation = 0;
	subject->loaded.hash = request->at.sum;
	subject->loaded.class = request->at.set;
	subject->loaded.generation = request->generation;
	subject->has_loaded = 1;
}

/* Of what the kernel maps to start a program: the program itself, or the linker that it asks for. */
static __always_inline int was_decided(struct task_struct *task, struct file *file)
{
	struct mm_struct *mm = task->mm;
	struct file *exe = mm ? mm->exe_file : NULL;

	/* A rule on the linker is about ``ld.so PROGRAM``: every program asks for it. */
	return (exe && exe->f_inode == file->f_inode) || is_linker(file->f_inode);
}

static __always_inline int enforce_code(struct file *file)
{
	struct task_struct *task = bpf_get_current_task_btf();
	struct request request = {.operation = OP_MAP, .flags = REQUEST_RULES_ONLY};
	int starting = is_starting(task), loads, going;
	struct subject *subject;

	if (starting && was_decided(task, file))
		return 0;
	subject = bpf_task_storage_get(&subjects, task, 0, 0);
	loads = !starting && !(subject && subject->has_loaded) && !has_interpreter();
	if (!loads && is_nobodys(&file->f_path, file->f_inode, ENTITY_PROCESS))
		return 0;
	subject = start_request(&request, &going);
	if (!going)
		return 0;
	request.condition |= owner_condition(file->f_inode);
	if (loads) {
		request.at.dentry = (__u64)file->f_path.dentry;
		request.at.mnt = (__u64)file->f_path.mnt;
		request.at.space = SPACE_SOURCE;
		path_sets(&request.at);
		note_code(task, &request);
	}
	if (subject && subject->caller.hash)
		request.extra = further_in(past_class(&subject->caller, request.at.copy, request.generation), profile_of(&request));
	locate(&request, &file->f_path, file->f_inode, ENTITY_PROCESS);
	return decide(&request);
}

SEC("lsm/mmap_file")
int BPF_PROG(guard_mmap, struct file *file, unsigned long reqprot, unsigned long prot, unsigned long flags, int ret)
{
	if (ret || !file)
		return ret;
	/* A shared mapping of a file that is open for writing can be made writable at any time. */
	if (flags & MAP_SHARED && file->f_mode & FMODE_WRITE)
		ret = enforce(ENTITY_FILE, OP_MAP_SHARED, &file->f_path, file->f_inode, CONDITION_WRITE);
	return ret || !(prot & PROT_EXEC) ? ret : enforce_code(file);
}

SEC("lsm/file_mprotect")
int BPF_PROG(guard_mprotect, struct vm_area_struct *vma, unsigned long reqprot, unsigned long prot, int ret)
{
	if (ret || !(prot & PROT_EXEC) || !vma->vm_file || vma->vm_flags & VM_EXEC)
		return ret;
	return enforce_code(vma->vm_file);
}

SEC("lsm/bprm_committed_creds") int BPF_PROG(guard_started, struct linux_binprm *bprm)
{
	struct subject *subject = bpf_task_storage_get(&subjects, bpf_get_current_task_btf(), 0, 0);

	if (!subject)
		return 0;
	subject->caller = subject->pending;
	subject->pending.hash = subject->loaded.hash = 0;
	subject->pending.class = subject->loaded.class = ANY_CLASS;
	subject->has_loaded = 0;
	return 0;
}

SEC("lsm/task_alloc") int BPF_PROG(guard_fork, struct task_struct *child, unsigned long clone_flags, int ret)
{
	struct subject *parent = bpf_task_storage_get(&subjects, bpf_get_current_task_btf(), 0, 0), *kept;

	if (ret || !parent || (!parent->loaded.class && !parent->caller.class && !parent->member.cgroup))
		return ret;
	kept = bpf_task_storage_get(&subjects, child, 0, BPF_LOCAL_STORAGE_GET_F_CREATE);
	if (kept) {
		kept->caller = parent->caller;
		kept->loaded = parent->loaded;
		kept->has_loaded = parent->has_loaded;
		kept->member = parent->member;
	}
	return 0;
}

char LICENSE[] SEC("license") = "GPL";

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
 * the program was decided at exec; what it names as its interpreter is decided here, but for the system's own. A mapped program counts like its own process for rules that refuse, never for those that grant.
 */
#include <linux/bpf.h>

#include "include/enforce.h"

#define PROT_EXEC 4
#define MAP_SHARED 1 /* also a bit of MAP_SHARED_VALIDATE */
#define FMODE_WRITE 2
#define VM_EXEC 4

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
	return BPF_CORE_READ_BITFIELD_PROBED(task, in_execve);
}

/* The first code that a program without interpreter maps is what it runs: it is a dynamic linker. */
static __always_inline void note_code(struct subject *subject, const struct request *request)
{
	if (!subject || subject->image != IMAGE_FRESH)
		return;
	subject->loaded.generation = 0;
	subject->loaded.hash = request->at.sum;
	subject->loaded.class = request->at.set;
	subject->loaded.generation = request->generation;
	subject->image = IMAGE_LOADED;
}

static __always_inline int enforce_code(struct file *file)
{
	struct task_struct *task = bpf_get_current_task_btf();
	struct request request = {.operation = OP_MAP, .flags = REQUEST_RULES_ONLY};
	struct subject *subject;
	int going;

	if (is_starting(task)) {
		/* Its program, or the linker that its program asks for. */
		if (file->f_inode == BPF_CORE_READ(task, mm, exe_file, f_inode))
			return 0;
		subject = bpf_task_storage_get(&subjects, task, 0, 0);
		if (subject && subject->image == IMAGE_FRESH)
			subject->image = IMAGE_DYNAMIC;
		/* A rule on the linker is about ``ld.so PROGRAM``: every program asks for it. */
		if (is_linker(file->f_inode))
			return 0;
	}
	subject = start_request(&request, &going);
	if (!going)
		return 0;
	request.condition |= owner_condition(file->f_inode);
	if (subject && subject->image == IMAGE_FRESH) {
		request.at.dentry = (__u64)file->f_path.dentry;
		request.at.mnt = (__u64)file->f_path.mnt;
		request.at.space = SPACE_SOURCE;
		path_sets(&request.at);
		note_code(subject, &request);
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
	subject->image = IMAGE_FRESH;
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
		kept->image = parent->image;
		kept->member = parent->member;
	}
	return 0;
}

char LICENSE[] SEC("license") = "GPL";

/* SPDX-License-Identifier: GPL-2.0-only */
/*
 * From an operation on a path to a verdict and an event: what all programs about processes and files share.
 *
 * Who acts is a subject (subject.h) in a workload (workloads.h); what is acted on is a place (places.h). The strictest of all that both
 * are counts, so hard links, bind mounts and renames lead nowhere; only the path can grant.
 */
#ifndef GARRISON_ENFORCE_H
#define GARRISON_ENFORCE_H

#include "subject.h"
#include "telling.h"

#include <bpf/bpf_tracing.h>

#define EPERM 1

/*
 * A subject's own row, or the nearest that stands for it: any class in its profile, its class on the host, any class on the host. A
 * profile has rows for each class that the set has rows for, or for none.
 */
static __always_inline const __u32 *row_of(void *table, __u32 set, __u32 subject)
{
	struct record_key key = {.set = set, .subject = subject};
	const __u32 *row = bpf_map_lookup_elem(table, &key);

	if (!row && subject & CLASS_MASK) {
		key.subject = subject & ~CLASS_MASK;
		row = bpf_map_lookup_elem(table, &key);
	}
	if (!row && subject >> CLASS_BITS) {
		key.subject = subject & CLASS_MASK;
		row = bpf_map_lookup_elem(table, &key);
		if (!row && key.subject) {
			key.subject = ANY_CLASS;
			row = bpf_map_lookup_elem(table, &key);
		}
	}
	return row;
}

static __always_inline struct outcome outcome_of(__u32 copy, __u32 set, __u32 subject, __u32 condition)
{
	struct outcome none = {};
	void *table = bpf_map_lookup_elem(&rows, &copy), *values = bpf_map_lookup_elem(&records, &copy);
	const struct record *record;
	const __u32 *row;

	if (!table || !values)
		return none;
	row = row_of(table, set, subject);
	record = row ? bpf_map_lookup_elem(values, row) : NULL;
	return record ? record->by[condition & (CONDITIONS - 1)] : none;
}

#define REQUEST_RULES_ONLY 1 /* postures and allow-lists do not apply */
#define REQUEST_BELOW 2	     /* it is about all that is in a directory, too */
#define REQUEST_LISTS 4	     /* there are allow-lists */
#define REQUEST_INODES 8     /* there are files known by inode */
#define REQUEST_WORKLOADS 16 /* there are rules for workloads */
#define ALSO_SHIFT 16	     /* from this bit on: profile of a container that the actor has left; HOST_PROFILE for none */

/* One operation on one path. */
struct request {
	struct lookup at; /* space is the entity */
	__u32 operation;
	__u32 condition;
	__u32 flags;
	/* filled by identify() */
	__u32 generation;
	__u32 class; /* these three with the actor's profile: they are subjects */
	__u32 alias; /* further classes of the actor, which only refuse; ANY_CLASS for none */
	__u32 extra;
	__u32 named; /* set of the inode, as far as a rule names it */
};

/* An outcome as one number, for functions that are verified for themselves; the greater is the stricter. */
static __always_inline __u64 packed(struct outcome outcome)
{
	return (__u64)outcome.verdict << 40 | (__u64)outcome.by_posture << 32 | outcome.rule;
}

static __always_inline struct outcome unpacked(__u64 outcome)
{
	struct outcome found = {.verdict = outcome >> 40, .by_posture = outcome >> 32 & 1, .rule = outcome};

	return found;
}

static __always_inline int is_stricter(struct outcome outcome, __u64 than)
{
	return outcome.verdict >= VERDICT_AUDIT && outcome.verdict > than >> 40;
}

/* Whether rules name this class: by a row in its profile, or on the host when the profile has no rows for the set. */
static __always_inline int is_named(void *table, __u32 set, __u32 subject)
{
	struct record_key key = {.set = set, .subject = subject};

	if (!(subject & CLASS_MASK))
		return 0;
	if (bpf_map_lookup_elem(table, &key))
		return 1;
	key.subject = subject & CLASS_MASK;
	return subject >> CLASS_BITS && bpf_map_lookup_elem(table, &key);
}

/* What rules say of a class that they name; nothing when they name it not. */
static __always_inline struct outcome outcome_of_named(__u32 copy, __u32 set, __u32 subject, __u32 condition)
{
	struct outcome none = {};
	void *table = bpf_map_lookup_elem(&rows, &copy);

	return table && is_named(table, set, subject) ? outcome_of(copy, set, subject, condition) : none;
}

/* The outcome of a set for all that the actor is. Verified for itself. */
__noinline __u64 weigh_set(const struct request *request, __u32 set)
{
	struct outcome outcome;
	__u64 found;

	if (!request || !set)
		return 0;
	found = packed(outcome_of(request->at.copy, set, request->class, request->condition));
	outcome = outcome_of_named(request->at.copy, set, request->alias, request->condition);
	if (is_stricter(outcome, found))
		found = packed(outcome);
	outcome = outcome_of_named(request->at.copy, set, request->extra, request->condition);
	if (is_stricter(outcome, found))
		found = packed(outcome);
	return found;
}

/* The posture of a further class of the actor, where no rule speaks of it. */
static __always_inline __u64 weigh_posture(const struct request *request, __u32 class, __u64 found)
{
	struct outcome posture = outcome_of_named(request->at.copy, POSTURE_OF(request->at.space), class, 0);

	if (!is_stricter(posture, found) || outcome_of(request->at.copy, request->at.set, class, request->condition).verdict)
		return found;
	return packed(posture);
}

/* What allow-lists say, where rules have said ``found``. Verified for itself. */
__noinline __u64 weigh_lists(const struct request *request, __u64 found)
{
	if (!request)
		return found;
	if (!(found >> 40))
		found = packed(outcome_of(request->at.copy, POSTURE_OF(request->at.space), request->class, 0));
	found = weigh_posture(request, request->alias, found);
	return weigh_posture(request, request->extra, found);
}

/* Whether no rule and no posture can speak: mostly so, and told without a look-up. */
static __always_inline int is_free(const struct request *request)
{
	return !(request->at.set | request->at.home | request->named | (request->flags & (REQUEST_LISTS | REQUEST_BELOW)));
}

/* The strictest outcome of all that the path is. Verified for itself. */
__noinline __u64 weigh_once(const struct request *request)
{
	__u64 found, other;

	if (!request)
		return 0;
	found = weigh_set(request, request->at.set);
	if (request->at.home != request->at.set) {
		other = weigh_set(request, request->at.home);
		if (is_stricter(unpacked(other), found))
			found = other;
	}
	if (request->flags & REQUEST_BELOW && request->at.below) {
		other = weigh_set(request, request->at.below);
		if (is_stricter(unpacked(other), found))
			found = other;
	}
	if (request->named != request->at.set) {
		other = weigh_set(request, request->named);
		if (is_stricter(unpacked(other), found))
			found = other;
	}
	if (request->flags & REQUEST_LISTS && !(request->flags & REQUEST_RULES_ONLY) &&
	    !(request->at.space == SPACE_FILE && is_nameless(request->at.mnt)))
		found = weigh_lists(request, found);
	return found;
}

/* A further class of the actor as a subject; there is none of any class. */
static __always_inline __u32 further_in(__u32 class, __u32 profile)
{
	return class & CLASS_MASK ? subject_in(class, profile) : ANY_CLASS;
}

static __always_inline __u32 profile_of(const struct request *request)
{
	return request->class >> CLASS_BITS;
}

static __always_inline __u32 also_of(const struct request *request)
{
	return request->flags >> ALSO_SHIFT;
}

static __always_inline void act_in(struct request *request, __u32 profile)
{
	request->class = subject_in(request->class, profile);
	request->alias = further_in(request->alias, profile);
	request->extra = further_in(request->extra, profile);
}

/* What one workload allows, the posture of the one that the actor has left may still refuse. Verified for itself. */
__noinline __u64 weigh_also(struct request *request, __u64 found)
{
	__u32 profile;
	__u64 other;

	if (!request)
		return found;
	profile = profile_of(request);
	act_in(request, also_of(request));
	other = weigh_once(request);
	act_in(request, profile);
	return is_stricter(unpacked(other), found) ? other : found;
}

/* The strictest outcome in all workloads that the actor is of. */
static __always_inline __u64 weigh_request(struct request *request)
{
	__u64 found = weigh_once(request);

	return also_of(request) ? weigh_also(request, found) : found;
}

/* Verified for itself. */
__noinline int tell_request(const struct request *request, __u64 outcome)
{
	struct telling told = {};

	if (!request)
		return 0;
	told.outcome = unpacked(outcome);
	told.dentry = request->at.dentry;
	told.mnt = request->at.mnt;
	told.generation = request->generation;
	told.operation = request->operation;
	told.condition = request->condition;
	return may_tell(&told) ? tell(&told) : 0;
}

/* The decision, and its event. Returns 0 or -EPERM. */
static __always_inline int decide(struct request *request)
{
	__u64 outcome = is_free(request) ? 0 : weigh_request(request);

	if (unpacked(outcome).verdict < VERDICT_AUDIT)
		return 0;
	tell_request(request, outcome);
	return unpacked(outcome).verdict == VERDICT_BLOCK ? -EPERM : 0;
}

/* The actor's workload. Without memory to keep it: unknown. Kernel threads are in none. */
static __always_inline void enter_workload(struct request *request, struct task_struct *task, struct subject *subject)
{
	__u32 profile = task->mm ? UNKNOWN_PROFILE : HOST_PROFILE;

	if (subject) {
		refresh_membership(&subject->member, request->at.copy, request->generation);
		profile = subject->member.profile;
		request->flags |= subject->member.also << ALSO_SHIFT;
	}
	act_in(request, profile);
}

/*
 * Who acts, under which generation. Uses ``request->at``, so that is filled later: ``sum`` is the hash of the actor's program. Returns
 * the actor's entry, if it has one; ``going``: whether rules hold.
 */
static __always_inline struct subject *identify(struct request *request, int *going)
{
	struct task_struct *task = bpf_get_current_task_btf();
	struct subject *subject;
	struct head *head;

	request->at.copy = active_copy();
	head = head_of(request->at.copy);
	*going = head && head->generation;
	if (!*going)
		return NULL;
	request->generation = head->generation;
	request->flags |= (head->has_lists ? REQUEST_LISTS : 0) | (head->has_inodes ? REQUEST_INODES : 0) |
			  (head->has_profiles ? REQUEST_WORKLOADS : 0);
	if (task->signal->tty)
		request->condition |= CONDITION_TTY;
	subject = subject_of(task, request->generation, &request->at);
	request->class = request->at.set;
	request->alias = request->at.home;
	if (subject)
		request->extra = past_class(&subject->loaded, request->at.copy, request->generation);
	if (request->flags & REQUEST_WORKLOADS)
		enter_workload(request, task, subject);
	return subject;
}

static __always_inline struct subject *start_request(struct request *request, int *going)
{
	struct subject *subject = identify(request, going);

	if (*going)
		count(COUNT_DECISIONS);
	return subject;
}

static __always_inline __u32 owner_condition(struct inode *inode)
{
	struct task_struct *task = bpf_get_current_task_btf();

	return inode->i_uid.val == task->cred->fsuid.val ? CONDITION_OWNER : 0;
}

static __always_inline __u32 named_set(const struct request *request, const struct inode *inode)
{
	const struct inode_sets *named = request->flags & REQUEST_INODES ? named_inode(inode, request->at.copy) : NULL;

	if (!named)
		return NO_SET;
	return request->at.space == SPACE_PROCESS ? named->set[ENTITY_PROCESS] : named->set[ENTITY_FILE];
}

/* Fills all that tables say of the file ``inode`` at ``path``, from the cache if it is there. */
static __always_inline void locate(struct request *request, const struct path *path, struct inode *inode, __u32 entity)
{
	struct located *kept = located_of(inode);
	struct dentry *dentry = path->dentry;
	struct vfsmount *mnt = path->mnt;
	struct lookup *at = &request->at;
	__u64 stamp = stamp_of(dentry, mnt, request->generation);

	at->dentry = (__u64)dentry;
	at->mnt = (__u64)mnt;
	at->space = entity;
	if (recall(kept, at, stamp, &request->named))
		return;
	request->named = named_set(request, inode);
	path_sets(at);
	/* If something moved meanwhile, the decision may be of before or after, but it is not kept. */
	if (stamp == stamp_of(dentry, mnt, request->generation))
		remember(kept, at, stamp, request->named);
}

/*
 * Whether it is known without asking who acts that nothing speaks of this file, which is so of most: no rule names it, and there are
 * no allow-lists. Where there are rules for workloads, whose each act is noted, it is never so.
 */
static __always_inline int is_nobodys(const struct path *path, struct inode *inode, __u32 entity)
{
	const struct head *head = head_of(active_copy());
	struct dentry *dentry = path->dentry;
	struct vfsmount *mnt = path->mnt;
	struct located *kept;
	__u64 stamp;
	int found;

	if (!head || head->has_lists || head->has_profiles)
		return 0;
	kept = bpf_inode_storage_get(&locations, inode, 0, 0);
	if (!kept)
		return 0;
	stamp = stamp_of(dentry, mnt, head->generation);
	bpf_spin_lock(&kept->lock);
	found = is_place(&kept->at, (__u64)dentry, (__u64)mnt, stamp) && kept->known & (1 << entity) &&
		!(kept->set[entity] | kept->home[entity] | kept->named[entity]);
	bpf_spin_unlock(&kept->lock);
	if (found)
		count(COUNT_DECISIONS);
	return found;
}

/* Decides an operation on a file that is there. Returns 0 or -EPERM. */
static __always_inline int enforce(__u32 entity, __u32 operation, const struct path *path, struct inode *inode, __u32 condition)
{
	struct request request = {.operation = operation, .condition = condition | owner_condition(inode)};
	int going;

	if (is_nobodys(path, inode, entity))
		return 0;
	start_request(&request, &going);
	if (!going)
		return 0;
	locate(&request, path, inode, entity);
	return decide(&request);
}

/* Functions of their own, like those above, for what is told of a dentry that is only a number. */
__noinline __u32 named_set_of(__u64 dentry, __u32 copy)
{
	struct dentry *at = (void *)dentry;
	struct inode *inode = BPF_CORE_READ(at, d_inode);
	struct inode_key key = inode_key_of(inode);
	void *table = bpf_map_lookup_elem(&inodes, &copy);
	const struct inode_sets *sets = table && inode ? bpf_map_lookup_elem(table, &key) : NULL;

	return sets ? sets->set[ENTITY_FILE] : NO_SET;
}

/* What is not there yet will belong to who makes it. */
__noinline __u32 owner_of_name(__u64 dentry)
{
	struct task_struct *task = bpf_get_current_task_btf();
	struct dentry *at = (void *)dentry;
	struct inode *inode = BPF_CORE_READ(at, d_inode);

	return !inode || BPF_CORE_READ(inode, i_uid.val) == task->cred->fsuid.val ? CONDITION_OWNER : 0;
}

/* Decides an operation on a name, under which nothing need be yet; ``mnt`` 0: not known. Returns whether not. Verified for itself. */
__noinline int refuses_name(__u32 operation, __u64 dentry, __u64 mnt, __u32 flags)
{
	struct request request = {.operation = operation, .condition = CONDITION_WRITE, .flags = flags};
	int going;

	request.condition |= owner_of_name(dentry);
	start_request(&request, &going);
	if (!going)
		return 0;
	request.at.dentry = dentry;
	request.at.mnt = mnt;
	request.at.space = SPACE_FILE;
	path_sets(&request.at);
	if (request.flags & REQUEST_INODES)
		request.named = named_set_of(dentry, request.at.copy);
	return decide(&request);
}

static __always_inline int enforce_name(__u32 operation, __u64 dentry, __u64 mnt, __u32 flags)
{
	return refuses_name(operation, dentry, mnt, flags) ? -EPERM : 0;
}

#endif

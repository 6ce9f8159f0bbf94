/* SPDX-License-Identifier: Apache-2.0 */
/* What the responder and the agent say to each other. records.py and process.py pack the same structs.
 *
 * control  SOCK_SEQPACKET, agent <-> watcher <-> worker: one struct control a message; a table comes with MSG_TABLE.
 * records  SOCK_SEQPACKET, responder -> agent, never waited for: one struct record a message, followed by path, exe and cwd.
 * shared   a page that both sides map: struct shared. Only the responder writes.
 */
#ifndef GARRISON_WIRE_H
#define GARRISON_WIRE_H

#include <stdint.h>

enum control_type {
	MSG_TABLE = 1,	/* to the worker, with the descriptor of a sealed table: enforce this from now on */
	MSG_RESULT = 2, /* back: error is 0 or an errno, text says at what */
};

struct control {
	uint32_t type, generation;
	int32_t error;
	uint32_t pad;
	char text[240];
};
_Static_assert(sizeof(struct control) == 256, "process.py packs it");

/* Put an error into a result: what was done, on what. */
void control_fail(struct control *result, int error, const char *doing, const char *on);

enum record_type {
	RECORD_ALERT = 1,   /* a rule or posture refused or audited an operation */
	RECORD_DROPPED = 2, /* count alerts of rule did not fit into the queue */
	RECORD_LAPSE = 3,   /* the worker ended; pending opens were let go; reason is in status */
};

enum lapse { LAPSE_HUNG = 1, LAPSE_ENDED = 2, LAPSE_RESTART_FAILED = 3, LAPSE_RESTARTED = 4 };

enum record_flag {
	RECORD_BY_POSTURE = 1,
	RECORD_WRITE = 2,	   /* opened for writing, as far as a rule asked */
	RECORD_EXEMPT = 4,	   /* would have been refused, but never-deny processes are not */
	RECORD_PATH_UNKNOWN = 8,   /* path is what the kernel shows, which leads elsewhere here, or empty */
	RECORD_SOURCE_UNKNOWN = 16, /* a rule asked for the acting program and it could not be told */
};

struct record {
	uint32_t type, generation, rule;
	uint8_t entity, verdict;
	uint16_t flags;
	int32_t pid, ppid, uid, auid, ses, tty, status;
	uint32_t count;
	uint64_t start_ticks, ts_ns, mono_ns;
	uint16_t path_len, exe_len, cwd_len, pad;
};
_Static_assert(sizeof(struct record) == 80, "records.py unpacks it");

enum { BEAT_CONTROL, BEAT_READERS, BEATS = BEAT_READERS + 3 };

struct shared {
	uint64_t watcher_beat; /* rises while it turns */
	uint64_t generation, worker_pid;
	uint64_t opens, execs, blocks, audits, dropped, unresolved, exempted, restarts, hung;
	uint64_t foreign; /* events of processes outside our PID namespace, let pass */
	uint64_t lapsed;  /* 1 while a worker that held a table is gone */
	uint64_t beats[BEATS]; /* one for each thread of the worker: rise while they turn, 0 before a thread first does */
};
#define SHARED_BYTES 4096u

#define COUNT(counter) __atomic_add_fetch(&(counter), 1, __ATOMIC_RELAXED)
#define READ(counter) __atomic_load_n(&(counter), __ATOMIC_RELAXED)
#define WRITE(counter, value) __atomic_store_n(&(counter), (value), __ATOMIC_RELAXED)

#endif

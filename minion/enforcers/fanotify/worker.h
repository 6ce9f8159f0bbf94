/* SPDX-License-Identifier: Apache-2.0 */
#ifndef GARRISON_WORKER_H
#define GARRISON_WORKER_H

#include <stdbool.h>
#include <sys/types.h>

#include "wire.h"

#define BEAT_EVERY_MS 200 /* a fifth of what the watcher waits for */

struct worker_setup {
	int control, records; /* ends of the sockets; control leads to the watcher */
	struct shared *shared;
	pid_t agent, watcher; /* never refused anything */
};

/* Answer permission events until the watcher goes away. Returns the exit status. */
int worker_run(const struct worker_setup *setup);

/* Send or receive one control message, with a descriptor when *fd is not -1. Returns false at the end of the connection or on
 * error; a received message without a descriptor sets *fd to -1. */
bool control_send(int socket, const struct control *message, int fd);
bool control_receive(int socket, struct control *message, int *fd);

#endif

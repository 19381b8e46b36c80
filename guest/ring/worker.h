/* SPDX-License-Identifier: Apache-2.0 */
/*
 * A worker: a thread (loop.c) for a queue pair, and its owner (worker.c).
 *
 * They share little.  A ring's state says whose its queue is: the thread's
 * while RUNNING, else the owner's.  The owner makes it RUNNING; the thread
 * takes it out of that, because it was asked to stop or because the ring
 * broke, and both do so under the lock.
 */
#ifndef WORKER_H
#define WORKER_H

#include <pthread.h>
#include <unistd.h>
#include "rx.h"
#include "tx.h"

struct worker_ring {
	struct net_queue *q;
	uint32_t state; /* enum ring_state; changes under worker.lock */
	bool stop; /* wanted; under worker.lock */
	bool known; /* was started once; under worker.lock */
	int kick_fd;
};

struct worker {
	/* The thread's own. */
	struct worker_ring ring[RING_COUNT];
	int tap_fd;
	int events_fd;
	int wake_fd;
	uint64_t spin_ns;
	uint64_t poll_min_ns;
	uint64_t poll_max_ns;
	uint64_t sleep_ns; /* next sleep for want of kicks */
	bool spun; /* since there was work last */

	/* Shared.  control: not 0 if the thread is to look at the rest. */
	uint32_t control __attribute__((aligned(RING_CACHELINE)));
	pthread_mutex_t lock;
	pthread_cond_t changed;
	pthread_t thread;
	bool manual;
	bool quit;
	bool gone;

	struct mem mem __attribute__((aligned(RING_CACHELINE)));
	struct tx tx __attribute__((aligned(RING_CACHELINE)));
	struct rx rx __attribute__((aligned(RING_CACHELINE)));
};

void *loop_main(void *arg);
bool loop_control(struct worker *w);
int loop_round(struct worker *w, bool *ready);

/* Under the lock. */
static inline void worker_set_state(struct worker *w, struct worker_ring *ring,
				    enum ring_state state)
{
	/* Release: pairs with the acquire in loop_running(). */
	store_release(&ring->state, state);
	ring->stop = false;
	pthread_cond_broadcast(&w->changed);
}

static inline void worker_signal(int fd)
{
	uint64_t one = 1;

	if (fd >= 0)
		/* EAGAIN: the counter is full, so it is signalled. */
		(void)!write(fd, &one, sizeof(one));
}

#endif

/* SPDX-License-Identifier: Apache-2.0 */
/*
 * A worker: a thread for a queue pair (loop.c), and the functions that its
 * owner calls from other threads (worker.c).
 *
 * The state of a ring says who may use its queue: the thread while it is
 * RUNNING, the owner otherwise.  The owner makes it RUNNING; the thread ends
 * that, because it was asked to stop or because the ring broke.  Both do so
 * under the lock.
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
	bool stop; /* the owner asks for a stop; under worker.lock */
	int kick_fd;
};

struct worker {
	/* For the thread only. */
	struct worker_ring ring[RING_COUNT];
	int tap_fd;
	int events_fd;
	int wake_fd;
	uint64_t spin_ns; /* 0: never */
	uint64_t slept_ns; /* length of the last sleep; only if spin_ns */
	uint64_t poll_min_ns;
	uint64_t poll_max_ns;
	uint64_t sleep_ns; /* length of the next sleep without kicks */
	uint32_t tap_quiet; /* chains to send before the empty TAP is read */
	uint32_t singles; /* packets in a row that came alone: loop_rx() */
	bool tap_said; /* poll() has just said that the TAP has a packet */
	bool spun; /* it has spun since it last had work */
	struct capture capture; /* without slots: off */

	/* Shared.  control: 1 tells the thread to run loop_control(). */
	uint32_t control __attribute__((aligned(RING_CACHELINE)));
	pthread_mutex_t lock;
	pthread_cond_t changed;
	pthread_t thread;
	bool manual;
	bool confine;
	bool begun; /* the thread runs, or has ended with an error */
	bool quit;
	bool gone;
	bool capture_asked; /* the thread is to take capture_next */
	struct capture capture_next;
	int error; /* -errno with which it ended at its start */

	struct mem mem __attribute__((aligned(RING_CACHELINE)));
	struct tx tx __attribute__((aligned(RING_CACHELINE)));
	struct rx rx __attribute__((aligned(RING_CACHELINE)));
};

void *loop_main(void *arg);
bool loop_control(struct worker *w);
int loop_round(struct worker *w, bool *ready);

/* Call it under the lock. */
static inline void worker_set_state(struct worker *w, struct worker_ring *ring,
				    enum ring_state state)
{
	/*
	 * Release: the queue that the owner has set up must be visible before
	 * RUNNING is.  Pairs with the acquire in loop_running().
	 */
	store_release(&ring->state, state);
	ring->stop = false;
	pthread_cond_broadcast(&w->changed);
}

static inline void worker_signal(int fd)
{
	uint64_t one = 1;

	if (fd >= 0)
		/* EAGAIN: the counter is full, so the eventfd is signalled. */
		(void)!write(fd, &one, sizeof(one));
}

#endif

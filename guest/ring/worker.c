// SPDX-License-Identifier: Apache-2.0
/*
 * The owner's side of a worker: the functions that ring_api.h declares.
 */
#include <errno.h>
#include <fcntl.h>
#include <stdlib.h>
#include <string.h>
#include <sys/eventfd.h>
#include <time.h>
#include "thread.h"
#include "worker.h"

static int worker_spawn(struct worker *w, const char *name)
{
	int r = thread_start(&w->thread, loop_main, w, name);

	if (r)
		return r;
	pthread_mutex_lock(&w->lock);
	while (!w->begun)
		pthread_cond_wait(&w->changed, &w->lock);
	r = w->error;
	pthread_mutex_unlock(&w->lock);
	if (r)
		pthread_join(w->thread, NULL);
	return r;
}

static bool worker_conf_valid(const struct worker_conf *conf)
{
	int flags = fcntl(conf->tap_fd, F_GETFL);

	return flags >= 0 && flags & O_NONBLOCK && conf->poll_min_ns &&
	       conf->poll_min_ns <= conf->poll_max_ns;
}

static void worker_init(struct worker *w, const struct worker_conf *conf)
{
	pthread_condattr_t attr;

	memset(w, 0, sizeof(*w));
	w->ring[RING_RX].q = &w->rx.q;
	w->ring[RING_TX].q = &w->tx.q;
	for (int i = 0; i < RING_COUNT; i++) {
		w->ring[i].q->tap_fd = conf->tap_fd;
		w->ring[i].q->interrupt = &w->control;
	}
	w->rx.hold_ns = conf->hold_ns;
	w->tap_fd = conf->tap_fd;
	w->events_fd = conf->events_fd;
	w->spin_ns = conf->spin_ns;
	w->slept_ns = UINT64_MAX;
	w->poll_min_ns = conf->poll_min_ns;
	w->poll_max_ns = conf->poll_max_ns;
	w->sleep_ns = conf->poll_min_ns;
	w->manual = conf->manual;
	w->confine = conf->confine;
	w->gone = conf->manual;

	pthread_mutex_init(&w->lock, NULL);
	pthread_condattr_init(&attr);
	pthread_condattr_setclock(&attr, CLOCK_MONOTONIC);
	pthread_cond_init(&w->changed, &attr);
	pthread_condattr_destroy(&attr);
}

static void worker_free(struct worker *w)
{
	close(w->wake_fd);
	uring_close(&w->tx.uring);
	pthread_cond_destroy(&w->changed);
	pthread_mutex_destroy(&w->lock);
	free(w);
}

/**
 * worker_create() - Make a worker, and start its thread
 * @conf:	Options; the caller keeps the descriptors open, and closes them
 * @ret:	The worker
 *
 * Return: 0; -EINVAL: options are wrong, or the TAP's descriptor is blocking;
 *	   -errno
 */
int worker_create(const struct worker_conf *conf, struct worker **ret)
{
	struct worker *w;
	int r;

	if (!worker_conf_valid(conf))
		return -EINVAL;
	w = aligned_alloc(RING_CACHELINE, sizeof(*w));
	if (!w)
		return -ENOMEM;
	worker_init(w, conf);
	w->wake_fd = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK);
	r = w->wake_fd < 0 ? -errno : 0;
	/* Without it packets are written one by one, and the status says why. */
	if (!r && conf->io_uring)
		(void)uring_open(&w->tx.uring);
	if (!r && !w->manual)
		r = worker_spawn(w, conf->name);
	if (r) {
		worker_free(w);
		return r;
	}
	*ret = w;
	return 0;
}

/* Have the thread run loop_control(), whether it is busy or asleep. */
static void worker_poke(struct worker *w)
{
	/* Relaxed: the thread reads the request itself under the lock. */
	write_once(&w->control, 1);
	worker_signal(w->wake_fd);
}

static struct timespec worker_deadline(uint32_t timeout_ms)
{
	struct timespec t;

	clock_gettime(CLOCK_MONOTONIC, &t);
	t.tv_sec += timeout_ms / 1000;
	t.tv_nsec += timeout_ms % 1000 * 1000000L;
	if (t.tv_nsec >= 1000000000) {
		t.tv_nsec -= 1000000000;
		t.tv_sec++;
	}
	return t;
}

/**
 * worker_destroy() - Stop the rings, end the thread, free everything
 * @w:		Worker
 * @timeout_ms:	How long to wait for the thread
 *
 * Return: 0; -ETIMEDOUT: @w still exists, and the caller may try again
 */
int worker_destroy(struct worker *w, uint32_t timeout_ms)
{
	struct timespec end = worker_deadline(timeout_ms);
	bool gone;
	int r = 0;

	pthread_mutex_lock(&w->lock);
	w->quit = true;
	worker_poke(w);
	while (!w->gone && !r)
		r = pthread_cond_timedwait(&w->changed, &w->lock, &end);
	gone = w->gone;
	pthread_mutex_unlock(&w->lock);
	if (!gone)
		return -ETIMEDOUT;
	if (!w->manual)
		pthread_join(w->thread, NULL);
	worker_free(w);
	return 0;
}

/**
 * worker_set_memory() - Replace the master's memory regions
 * @w:		Worker
 * @regions:	Regions; they must stay mapped until the next call
 * @n:		Number of @regions
 *
 * Return: 0; -EBUSY: a ring is running; or as mem_set()
 */
int worker_set_memory(struct worker *w, const struct mem_region *regions,
		      uint32_t n)
{
	int r = -EBUSY;

	pthread_mutex_lock(&w->lock);
	if (w->ring[RING_RX].state != RING_RUNNING &&
	    w->ring[RING_TX].state != RING_RUNNING)
		r = mem_set(&w->mem, regions, n);
	pthread_mutex_unlock(&w->lock);
	return r;
}

/*
 * Make an eventfd non-blocking.  The flag belongs to the open file, so a
 * process that shares it may clear the flag again: see loop_drain().
 */
static int worker_unblock(int fd)
{
	int flags;

	if (fd < 0)
		return 0;
	flags = fcntl(fd, F_GETFL);
	if (flags < 0 || fcntl(fd, F_SETFL, flags | O_NONBLOCK) < 0)
		return -errno;
	return 0;
}

static int worker_start(struct worker *w, uint32_t index,
			const struct ring_conf *conf)
{
	struct worker_ring *ring = &w->ring[index];
	int r;

	if (ring->state == RING_RUNNING || w->quit)
		return -EBUSY;
	r = worker_unblock(conf->kick_fd);
	if (!r)
		r = worker_unblock(conf->call_fd);
	if (!r)
		r = net_init(ring->q, &w->mem, conf, index == RING_RX);
	if (r)
		return r;
	if (index == RING_RX)
		rx_start(&w->rx);
	else
		tx_start(&w->tx);
	ring->kick_fd = conf->kick_fd;
	worker_set_state(w, ring, RING_RUNNING);
	worker_poke(w);
	return 0;
}

/**
 * worker_start_ring() - Have the worker run a ring
 * @w:		Worker
 * @index:	enum ring_index
 * @conf:	The ring; its eventfds become non-blocking, and the caller keeps
 *		them open
 *
 * Return: 0; -EBUSY: it is running; -EINVAL, -EFAULT, -ESTALE as net_init();
 *	   -errno
 */
int worker_start_ring(struct worker *w, uint32_t index,
		      const struct ring_conf *conf)
{
	int r;

	if (index >= RING_COUNT)
		return -EINVAL;
	pthread_mutex_lock(&w->lock);
	r = worker_start(w, index, conf);
	pthread_mutex_unlock(&w->lock);
	return r;
}

static int worker_wait_stopped(struct worker *w, struct worker_ring *ring,
			       uint32_t timeout_ms)
{
	struct timespec end = worker_deadline(timeout_ms);
	int r = 0;

	while (ring->state == RING_RUNNING && !r)
		r = pthread_cond_timedwait(&w->changed, &w->lock, &end);
	return ring->state == RING_RUNNING ? -ETIMEDOUT : 0;
}

/**
 * worker_stop_ring() - Stop a ring; the worker does not touch it after this
 * @w:		Worker
 * @index:	enum ring_index
 * @timeout_ms:	How long to wait.  The worker needs microseconds, unless a
 *		system call on the TAP does not return
 *
 * Return: index at which a successor starts; -ETIMEDOUT: the worker still has
 *	   the ring, and the caller may try again; -ENOENT: it was never started
 */
int worker_stop_ring(struct worker *w, uint32_t index, uint32_t timeout_ms)
{
	struct worker_ring *ring;
	int r = -ENOENT;

	if (index >= RING_COUNT)
		return -EINVAL;
	ring = &w->ring[index];
	pthread_mutex_lock(&w->lock);
	if (ring->state != RING_IDLE) {
		ring->stop = true;
		worker_poke(w);
		/* Without a thread we do its part; it takes the lock itself. */
		if (w->manual) {
			pthread_mutex_unlock(&w->lock);
			loop_control(w);
			pthread_mutex_lock(&w->lock);
		}
		r = worker_wait_stopped(w, ring, timeout_ms);
	}
	if (!r) {
		worker_set_state(w, ring, RING_STOPPED);
		r = ring->q->vq.used;
	}
	pthread_mutex_unlock(&w->lock);
	return r;
}

static void worker_copy_stats(const struct ring_stats *from,
			      struct ring_stats *to)
{
	const uint64_t *p = (const void *)from;
	uint64_t *q = (void *)to;

	for (size_t i = 0; i < sizeof(*from) / sizeof(*p); i++)
		q[i] = read_once(&p[i]);
}

static int worker_io_uring(const struct worker *w)
{
	/* Relaxed: the thread may set it at any time, and it orders nothing. */
	int error = read_once(&w->tx.uring.error);

	return error ? -error : w->tx.uring.open;
}

/**
 * worker_read_ring() - Read the state of a ring and its counters
 * @w:		Worker
 * @index:	enum ring_index
 * @ret:	Status; fault and error are 0 while it is running
 *
 * Return: 0 or -EINVAL
 */
int worker_read_ring(struct worker *w, uint32_t index, struct ring_status *ret)
{
	const struct worker_ring *ring;

	if (index >= RING_COUNT)
		return -EINVAL;
	ring = &w->ring[index];
	memset(ret, 0, sizeof(*ret));
	pthread_mutex_lock(&w->lock);
	ret->state = ring->state;
	ret->index = read_once(&ring->q->vq.used);
	if (ring->state != RING_RUNNING) {
		ret->fault = ring->q->vq.fault;
		ret->error = ring->q->error;
	}
	ret->io_uring = index == RING_TX ? worker_io_uring(w) : 0;
	worker_copy_stats(&ring->q->stats, &ret->stats);
	pthread_mutex_unlock(&w->lock);
	return 0;
}

/**
 * worker_capture() - Copy packets to some memory, or end that
 * @w:		Worker
 * @addr:	Pointer to memory for @n_slots copies; 0: end it
 * @n_slots:	Copies that fit
 * @slot_size:	Bytes of each, with its struct capture_slot
 * @timeout_ms:	How long to wait for the thread
 *
 * Return: 0: the thread has no other memory for copies than this; -EINVAL: the
 *	   sizes or the alignment are wrong; -ETIMEDOUT: it may still use the
 *	   memory before as well, and the caller may try again
 */
int worker_capture(struct worker *w, uint64_t addr, uint32_t n_slots,
		   uint32_t slot_size, uint32_t timeout_ms)
{
	struct timespec end = worker_deadline(timeout_ms);
	int r = 0;

	if (addr && !capture_valid(addr, n_slots, slot_size))
		return -EINVAL;
	pthread_mutex_lock(&w->lock);
	w->capture_next = (struct capture){
		.slots = (void *)(uintptr_t)addr,
		.n_slots = n_slots,
		.slot_size = slot_size,
	};
	w->capture_asked = true;
	worker_poke(w);
	/* Without a thread we do its part; it takes the lock itself. */
	if (w->manual) {
		pthread_mutex_unlock(&w->lock);
		loop_control(w);
		pthread_mutex_lock(&w->lock);
	}
	while (w->capture_asked && !r)
		r = pthread_cond_timedwait(&w->changed, &w->lock, &end);
	if (!w->capture_asked)
		r = 0;
	pthread_mutex_unlock(&w->lock);
	return -r;
}

/**
 * worker_step() - Run one round of a worker that has no thread; do not sleep
 * @w:		Worker made with conf.manual
 *
 * Return: number of chains and packets handled; 0: there was nothing to do, and
 *	   kicks are enabled; -EINVAL: the worker has a thread
 */
int worker_step(struct worker *w)
{
	bool ready;

	if (!w->manual)
		return -EINVAL;
	loop_control(w);
	return loop_round(w, &ready);
}

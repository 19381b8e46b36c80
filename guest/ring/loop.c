// SPDX-License-Identifier: Apache-2.0
/*
 * The thread of a queue pair: two rings, one TAP queue, and one ppoll() for
 * all.
 *
 * The thread reads `control` after each packet, so it stops within one system
 * call.  It blocks only in loop_sleep(), in ppoll().
 *
 * Kicks are disabled while there is work.  A round that finds no work spins for
 * a short time if loop_spin() finds that worthwhile, then enables kicks, looks
 * for work once more, and sleeps.  For a ring without a kick eventfd it enables
 * no kicks; it sleeps for poll_min_ns, then twice as long each time, up to
 * poll_max_ns.  A packet in the TAP wakes the thread at once in either case.
 */
#include <errno.h>
#include <poll.h>
#include <string.h>
#include <sys/uio.h>
#include <time.h>
#include "worker.h"

enum {
	LOOP_POLL_WAKE,
	LOOP_POLL_TAP,
	LOOP_POLL_KICK,
	LOOP_POLL_COUNT = LOOP_POLL_KICK + RING_COUNT,
	/* Chains sent before an empty TAP is read without asking ppoll(). */
	LOOP_TAP_QUIET = 8,
	/* Packets that come alone, one after the other, before the next is believed to. */
	LOOP_SINGLES = 4,
	LOOP_CHECK = 8 /* every so many of those, that is checked */
};

static bool loop_running(const struct worker_ring *ring)
{
	/* Acquire: then we see the queue.  Pairs with worker_set_state(). */
	return load_acquire(&ring->state) == RING_RUNNING;
}

/* End a ring after a fault.  The other ring runs on. */
static void loop_fail(struct worker *w, struct worker_ring *ring, int error)
{
	pthread_mutex_lock(&w->lock);
	RING_COUNT_ADD(ring->q->stats.faults, 1);
	worker_set_state(w, ring, error == -ESTALE ? RING_FENCED : RING_BROKEN);
	pthread_mutex_unlock(&w->lock);
	worker_signal(w->events_fd);
}

/* Copy packets to where the owner wants them from now on; under the lock. */
static void loop_take_capture(struct worker *w)
{
	w->capture = w->capture_next;
	for (int i = 0; i < RING_COUNT; i++)
		w->ring[i].q->capture = w->capture.slots ? &w->capture : NULL;
	w->capture_asked = false;
	pthread_cond_broadcast(&w->changed);
}

/**
 * loop_control() - Do what the owner asks for
 * @w:		Worker
 *
 * Return: false if the thread is to end
 */
bool loop_control(struct worker *w)
{
	bool quit;

	pthread_mutex_lock(&w->lock);
	/* Under the lock, so no request can come between this and the rest. */
	write_once(&w->control, 0);
	quit = w->quit;
	if (w->capture_asked)
		loop_take_capture(w);
	for (int i = 0; i < RING_COUNT; i++) {
		struct worker_ring *ring = &w->ring[i];

		if (ring->state != RING_RUNNING || !(ring->stop || quit))
			continue;
		if (i == RING_RX)
			rx_stop(&w->rx);
		worker_set_state(w, ring, RING_STOPPED);
	}
	pthread_mutex_unlock(&w->lock);
	return !quit;
}

/*
 * Is a read of the TAP not worth its system call?  It was empty a moment ago, and
 * the thread is about to sleep in ppoll(), which says when it is not.  With much
 * to send it may never sleep: then the TAP is read after some chains.
 */
static bool loop_tap_is_quiet(const struct worker *w)
{
	return w->tap_quiet && w->rx.q.wait == NET_WAIT_TAP_IN;
}

/*
 * Is the packet of which poll() has told the only one?  Requests and their replies
 * come one by one, and then a second read of the TAP is a system call for nothing.
 * Where that is a mistake, the next ppoll() returns at once.
 */
static bool loop_expects_one(const struct worker *w)
{
	return w->tap_said && w->singles >= LOOP_SINGLES &&
	       w->singles % LOOP_CHECK;
}

/* Learn from a pass that handled @r packets whether they come one by one. */
static void loop_count_singles(struct worker *w, int r)
{
	if (r == 1 && w->tap_said && w->rx.q.wait == NET_WAIT_TAP_IN)
		w->singles++;
	else if (r > 0)
		w->singles = 0;
	w->tap_said = false;
}

static int loop_rx(struct worker *w)
{
	int r;

	if (loop_tap_is_quiet(w))
		return 0;
	w->rx.one = loop_expects_one(w);
	r = rx_pass(&w->rx);
	loop_count_singles(w, r);
	/* Without a thread there is no ppoll() to wait for. */
	w->tap_quiet = w->manual ? 0 : LOOP_TAP_QUIET;
	return r;
}

static int loop_tx(struct worker *w)
{
	int r = tx_pass(&w->tx);

	/* A pass that leaves some gives the other direction its turn. */
	if (r < 0 || w->tx.q.wait == NET_WAIT_NOT || (uint32_t)r > w->tap_quiet)
		w->tap_quiet = 0;
	else
		w->tap_quiet -= r;
	return r;
}

/* Run one pass of each ring.  Returns the number of chains and packets. */
static int loop_pass(struct worker *w)
{
	int n = 0;

	for (int i = 0; i < RING_COUNT; i++) {
		struct worker_ring *ring = &w->ring[i];
		int r;

		if (!loop_running(ring))
			continue;
		r = i == RING_RX ? loop_rx(w) : loop_tx(w);
		if (r < 0)
			loop_fail(w, ring, r);
		else
			n += r;
	}
	return n;
}

static bool loop_waits_for_kick(const struct worker_ring *ring)
{
	return loop_running(ring) && ring->q->wait == NET_WAIT_KICK;
}

static bool loop_has_more(const struct worker *w)
{
	for (int i = 0; i < RING_COUNT; i++)
		if (loop_waits_for_kick(&w->ring[i]) &&
		    vq_has_more(&w->ring[i].q->vq))
			return true;
	return read_once(&w->control);
}

static void loop_relax(void)
{
#if defined(__x86_64__) || defined(__i386__)
	__builtin_ia32_pause();
#elif defined(__aarch64__)
	__asm__ volatile("yield" ::: "memory");
#endif
}

static short loop_tap_events(const struct worker *w)
{
	short events = 0;

	for (int i = 0; i < RING_COUNT; i++) {
		if (!loop_running(&w->ring[i]))
			continue;
		if (w->ring[i].q->wait == NET_WAIT_TAP_IN)
			events |= POLLIN;
		if (w->ring[i].q->wait == NET_WAIT_TAP_OUT)
			events |= POLLOUT;
	}
	return events;
}

/* Does the TAP have what a ring waits for? */
static bool loop_tap_ready(const struct worker *w)
{
	struct pollfd fd = {.fd = w->tap_fd, .events = loop_tap_events(w)};

	return fd.events && poll(&fd, 1, 0) > 0;
}

/*
 * Look for work instead of sleeping: what comes within spin_ns then costs neither
 * a kick nor a wake-up.  Only if the last sleep was as short: an idle worker does
 * not spin, nor does one whose packets come too seldom.  Returns true if work has
 * come.
 */
static bool loop_spin(struct worker *w)
{
	uint64_t end;

	if (w->spun || w->slept_ns >= w->spin_ns)
		return false;
	w->spun = true;
	end = net_now() + w->spin_ns;
	do {
		for (int i = 0; i < 16; i++) {
			if (loop_has_more(w))
				return true;
			loop_relax();
		}
		if (loop_tap_ready(w)) {
			w->tap_quiet = 0;
			w->tap_said = true;
			return true;
		}
	} while (net_now() < end);
	return false;
}

/* Enable kicks where a ring waits for them.  Returns true if work has come. */
static bool loop_arm(struct worker *w)
{
	bool more = false;

	for (int i = 0; i < RING_COUNT; i++) {
		struct worker_ring *ring = &w->ring[i];
		int r;

		if (loop_running(ring) && ring->q->wait == NET_WAIT_NOT)
			more = true; /* its pass was interrupted */
		if (!loop_waits_for_kick(ring) || ring->kick_fd < 0)
			continue;
		r = vq_enable_kicks(&ring->q->vq);
		if (r < 0)
			loop_fail(w, ring, r);
		else if (r)
			more = true;
	}
	return more;
}

/* Return the time until @deadline, or @timeout if that is shorter. */
static uint64_t loop_sooner(uint64_t timeout, uint64_t deadline)
{
	uint64_t now = net_now();

	if (deadline <= now)
		return 0;
	return deadline - now < timeout ? deadline - now : timeout;
}

/* How long to sleep at most; UINT64_MAX: until a descriptor is ready. */
static uint64_t loop_timeout(const struct worker *w)
{
	uint64_t timeout = UINT64_MAX;

	for (int i = 0; i < RING_COUNT; i++) {
		const struct worker_ring *ring = &w->ring[i];

		if (loop_waits_for_kick(ring) && ring->kick_fd < 0 &&
		    w->sleep_ns < timeout)
			timeout = w->sleep_ns;
		if (loop_running(ring) && ring->q->wait == NET_WAIT_PAUSE)
			timeout = loop_sooner(timeout, ring->q->resume_at);
	}
	if (loop_running(&w->ring[RING_RX]) && w->rx.held)
		timeout = loop_sooner(timeout, w->rx.held_until);
	return timeout;
}

/*
 * Choose the descriptors to poll.  One that no ring waits for is left out: it
 * could be ready, or in error, all the time, and then the thread would never
 * sleep.
 */
static void loop_poll_set(const struct worker *w, struct pollfd *fds)
{
	short events = loop_tap_events(w);

	fds[LOOP_POLL_WAKE].fd = w->wake_fd;
	fds[LOOP_POLL_WAKE].events = POLLIN;
	fds[LOOP_POLL_TAP].fd = events ? w->tap_fd : -1;
	fds[LOOP_POLL_TAP].events = events;
	for (int i = 0; i < RING_COUNT; i++) {
		const struct worker_ring *ring = &w->ring[i];

		fds[LOOP_POLL_KICK + i].fd =
			loop_waits_for_kick(ring) ? ring->kick_fd : -1;
		fds[LOOP_POLL_KICK + i].events = POLLIN;
	}
}

/*
 * Empty an eventfd that ppoll() found ready.  RWF_NOWAIT, because another
 * process may have emptied it meanwhile, and may have made the file that it
 * shares with us blocking.
 */
static int loop_drain(int fd)
{
	struct iovec iov;
	uint64_t count;
	ssize_t r;

	iov.iov_base = &count;
	iov.iov_len = sizeof(count);
	r = preadv2(fd, &iov, 1, -1, RWF_NOWAIT);
	if (r < 0 && errno == EOPNOTSUPP) /* eventfd before Linux 5.8 */
		r = read(fd, &count, sizeof(count));
	if (r < 0)
		return errno == EAGAIN || errno == EINTR ? 0 : -errno;
	return r ? 0 : -EPIPE;
}

static void loop_kicked(struct worker *w, struct worker_ring *ring,
			short revents)
{
	int r = revents & POLLNVAL ? -EBADF : loop_drain(ring->kick_fd);

	RING_COUNT_ADD(ring->q->stats.kicks, 1);
	if (!r)
		return;
	ring->q->vq.fault = RING_FAULT_KICK;
	ring->q->error = -r;
	loop_fail(w, ring, -EPROTO);
}

/* The sleep ended without an event: sleep longer next time. */
static void loop_polled(struct worker *w)
{
	for (int i = 0; i < RING_COUNT; i++)
		if (loop_waits_for_kick(&w->ring[i]) && w->ring[i].kick_fd < 0)
			RING_COUNT_ADD(w->ring[i].q->stats.polls, 1);
	w->sleep_ns *= 2;
	if (w->sleep_ns > w->poll_max_ns)
		w->sleep_ns = w->poll_max_ns;
}

static void loop_sleep(struct worker *w)
{
	struct pollfd fds[LOOP_POLL_COUNT] = {0};
	uint64_t timeout = loop_timeout(w);
	uint64_t began = w->spin_ns ? net_now() : 0;
	struct timespec ts;
	int r;

	loop_poll_set(w, fds);
	ts.tv_sec = timeout / 1000000000;
	ts.tv_nsec = timeout % 1000000000;
	r = ppoll(fds, LOOP_POLL_COUNT, timeout == UINT64_MAX ? NULL : &ts,
		  NULL);
	if (w->spin_ns)
		w->slept_ns = net_now() - began;
	/* EINTR: the next round looks at the rings, and then sleeps again. */
	if (r < 0)
		return;
	if (!r)
		loop_polled(w);
	w->tap_said = fds[LOOP_POLL_TAP].revents & POLLIN;
	w->tap_quiet = fds[LOOP_POLL_TAP].revents ? 0 : LOOP_TAP_QUIET;
	if (fds[LOOP_POLL_WAKE].revents)
		loop_drain(w->wake_fd);
	for (int i = 0; i < RING_COUNT; i++)
		if (fds[LOOP_POLL_KICK + i].revents)
			loop_kicked(w, &w->ring[i],
				    fds[LOOP_POLL_KICK + i].revents);
}

/**
 * loop_round() - Run one pass of both rings, and prepare for a sleep
 * @w:		Worker
 * @ready:	Set to true if the thread may sleep: there is nothing to do, and
 *		kicks are enabled
 *
 * Return: number of chains and packets handled
 */
int loop_round(struct worker *w, bool *ready)
{
	int n = loop_pass(w);

	*ready = false;
	if (n) {
		w->spun = false;
		w->sleep_ns = w->poll_min_ns;
		return n;
	}
	if (!loop_spin(w))
		*ready = !loop_arm(w);
	return 0;
}

/* Say whether the thread is as its owner wants it. */
static void loop_begun(struct worker *w, int error)
{
	pthread_mutex_lock(&w->lock);
	w->begun = true;
	w->error = error;
	pthread_cond_broadcast(&w->changed);
	pthread_mutex_unlock(&w->lock);
}

/**
 * loop_main() - Run the thread
 * @arg:	Worker
 *
 * Return: NULL
 */
void *loop_main(void *arg)
{
	struct worker *w = arg;
	int error = w->confine ? confine_thread() : 0;
	bool ready;

	loop_begun(w, error);
	while (!error) {
		if (read_once(&w->control) && !loop_control(w))
			break;
		loop_round(w, &ready);
		if (ready)
			loop_sleep(w);
	}

	pthread_mutex_lock(&w->lock);
	w->gone = true;
	pthread_cond_broadcast(&w->changed);
	pthread_mutex_unlock(&w->lock);
	return NULL;
}

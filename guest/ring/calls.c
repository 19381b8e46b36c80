// SPDX-License-Identifier: Apache-2.0
/*
 * The calls of another back-end, and kicks for one that would sleep.
 *
 * A back-end that is not ours, as the kernel's vhost-net, signals an eventfd
 * when it wants to call the master.  In a slave VM the way to the master is a
 * store to the doorbell register instead.  One thread for each device waits for
 * all its eventfds, and makes the store.
 *
 * Where the binding has no interrupts, nothing wakes a back-end that sleeps until
 * the driver kicks.  Then the same thread looks at each ring's avail idx, and
 * signals the kick of a ring where that has moved.  It sleeps longer while none
 * does, like a worker that polls (loop.c).
 *
 * The owner adds and removes rings under the lock, which the thread has only for
 * a few loads, stores and system calls that do not sleep.  So once a function
 * that removes a ring has returned, the thread touches nothing of the ring.
 */
#include <endian.h>
#include <errno.h>
#include <pthread.h>
#include <poll.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/eventfd.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <time.h>
#include <unistd.h>
#include "ring.h"
#include "thread.h"

#define CALLS_WAKE UINT32_MAX /* the number of wake_fd among the rings */
#define CALLS_EVENTS 16

struct calls_ring {
	struct calls_conf conf;
	struct calls_stats stats;
	bool used;
	bool socket; /* out_fd is one */
	uint32_t adds; /* how often it was added: which one an event is of */
	uint16_t seen; /* avail idx when the kick was signalled last */
};

struct calls {
	pthread_mutex_t lock;
	pthread_cond_t begun;
	pthread_t thread;
	int epoll_fd;
	int wake_fd;
	bool confine;
	bool has_begun; /* the thread runs, or has ended with an error */
	bool quit;
	int error; /* -errno with which it ended at its start */
	uint32_t polled; /* rings whose kicks the thread makes */
	uint64_t poll_min_ns;
	uint64_t poll_max_ns;
	uint64_t sleep_ns;
	struct calls_ring ring[CALLS_MAX_RINGS];
};

static void calls_signal(int fd)
{
	uint64_t one = 1;

	/* EAGAIN: the counter is full, so the eventfd is signalled. */
	(void)!write(fd, &one, sizeof(one));
}

/* Pass a call on; under the lock. */
static void calls_forward(struct calls_ring *ring)
{
	const struct calls_conf *conf = &ring->conf;
	uint32_t *doorbell = (void *)(uintptr_t)conf->call_addr;
	uint64_t one = 1;

	ring->stats.calls++;
	if (doorbell)
		/*
		 * Release: what the back-end wrote before it signalled us must
		 * be visible before the call.
		 */
		store_release(doorbell, htole32(conf->call_value));
	else if (ring->socket)
		/* EAGAIN: it is full of calls. */
		(void)!send(conf->out_fd, &one, sizeof(one),
			    MSG_DONTWAIT | MSG_NOSIGNAL);
	else if (conf->out_fd >= 0)
		calls_signal(conf->out_fd);
}

static uint16_t calls_avail_idx(const struct calls_conf *conf)
{
	const uint16_t *idx = (void *)(uintptr_t)conf->avail_idx_addr;

	/*
	 * Relaxed: the back-end looks at the ring for itself.  A move that is
	 * not seen yet is seen at the next look.
	 */
	return idx ? le16toh(read_once(idx)) : 0;
}

/* Signal the kick of a ring whose driver has moved on; under the lock. */
static bool calls_kick(struct calls_ring *ring)
{
	uint16_t now = calls_avail_idx(&ring->conf);
	bool moved = now != ring->seen;

	/* Of a packed ring it is not known, so such a ring is kicked each time. */
	if (ring->conf.avail_idx_addr && !moved)
		return false;
	ring->seen = now;
	ring->stats.kicks++;
	calls_signal(ring->conf.kick_fd);
	return moved;
}

/* Kick the rings that need it, and decide how long to sleep; under the lock. */
static void calls_poll(struct calls *c)
{
	bool moved = false;

	for (int i = 0; i < CALLS_MAX_RINGS; i++)
		if (c->ring[i].used && c->ring[i].conf.kick_fd >= 0)
			moved |= calls_kick(&c->ring[i]);
	c->sleep_ns = moved ? c->poll_min_ns : c->sleep_ns * 2;
	if (c->sleep_ns > c->poll_max_ns)
		c->sleep_ns = c->poll_max_ns;
}

/* Sleep until a call, or until it is time for kicks; return as epoll_wait(). */
static int calls_wait(struct calls *c, struct epoll_event *events,
		      uint64_t sleep_ns)
{
	struct pollfd any = {.fd = c->epoll_fd, .events = POLLIN};
	struct timespec limit = {.tv_sec = sleep_ns / 1000000000,
				 .tv_nsec = sleep_ns % 1000000000};

	/* epoll_wait() itself counts in milliseconds. */
	if (sleep_ns)
		(void)ppoll(&any, 1, &limit, NULL);
	return epoll_wait(c->epoll_fd, events, CALLS_EVENTS, sleep_ns ? 0 : -1);
}

static void calls_begin(struct calls *c, int error)
{
	pthread_mutex_lock(&c->lock);
	c->error = error;
	c->has_begun = true;
	pthread_cond_signal(&c->begun);
	pthread_mutex_unlock(&c->lock);
}

/* Act on what has happened; return how long to sleep next, 0 for no limit. */
static uint64_t calls_round(struct calls *c, const struct epoll_event *events,
			    int n, bool *quit)
{
	uint64_t sleep_ns = 0;

	pthread_mutex_lock(&c->lock);
	for (int i = 0; i < n; i++) {
		uint32_t index = (uint32_t)events[i].data.u64;
		uint32_t adds = events[i].data.u64 >> 32;

		/* Not a ring that was removed since, or added in its place. */
		if (index != CALLS_WAKE && c->ring[index].used &&
		    c->ring[index].adds == adds)
			calls_forward(&c->ring[index]);
	}
	if (c->polled) {
		calls_poll(c);
		sleep_ns = c->sleep_ns;
	}
	*quit = c->quit;
	pthread_mutex_unlock(&c->lock);
	return sleep_ns;
}

static void *calls_main(void *arg)
{
	struct epoll_event events[CALLS_EVENTS];
	struct calls *c = arg;
	uint64_t sleep_ns = 0;
	bool quit = false;
	int error = c->confine ? confine_thread() : 0;

	calls_begin(c, error);
	while (!error && !quit) {
		int n = calls_wait(c, events, sleep_ns);

		sleep_ns = calls_round(c, events, n, &quit);
	}
	return NULL;
}

static int calls_watch(struct calls *c, int fd, uint64_t data)
{
	/*
	 * At its edge: each signal of an eventfd is one, even if no one has read
	 * the one before.  So a call costs the thread one system call, not two.
	 */
	struct epoll_event event = {.events = EPOLLIN | EPOLLET,
				    .data.u64 = data};

	return epoll_ctl(c->epoll_fd, EPOLL_CTL_ADD, fd, &event) ? -errno : 0;
}

static int calls_spawn(struct calls *c, const char *name)
{
	int r = thread_start(&c->thread, calls_main, c, name);

	if (r)
		return r;
	pthread_mutex_lock(&c->lock);
	while (!c->has_begun)
		pthread_cond_wait(&c->begun, &c->lock);
	r = c->error;
	pthread_mutex_unlock(&c->lock);
	if (r)
		pthread_join(c->thread, NULL);
	return r;
}

static int calls_open(struct calls *c, const char *name)
{
	int r;

	c->epoll_fd = epoll_create1(EPOLL_CLOEXEC);
	if (c->epoll_fd < 0)
		return -errno;
	c->wake_fd = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK);
	if (c->wake_fd < 0)
		return -errno;
	r = calls_watch(c, c->wake_fd, CALLS_WAKE);
	return r ? r : calls_spawn(c, name);
}

static void calls_free(struct calls *c)
{
	if (c->wake_fd >= 0)
		close(c->wake_fd);
	if (c->epoll_fd >= 0)
		close(c->epoll_fd);
	pthread_cond_destroy(&c->begun);
	pthread_mutex_destroy(&c->lock);
	free(c);
}

/**
 * calls_create() - Start a thread that passes calls on
 * @name:	Of the thread; 15 bytes at most
 * @confine:	Leave the thread the system calls of confine.c only
 * @poll_min_ns: How long to sleep between two looks at a ring that moves
 * @poll_max_ns: The same for one that does not
 * @ret:	What the other functions take
 *
 * Return: 0; -EINVAL: the times make no sense; -errno
 */
int calls_create(const char *name, uint32_t confine, uint64_t poll_min_ns,
		 uint64_t poll_max_ns, struct calls **ret)
{
	struct calls *c;
	int r;

	if (!poll_min_ns || poll_min_ns > poll_max_ns)
		return -EINVAL;
	c = calloc(1, sizeof(*c));
	if (!c)
		return -ENOMEM;
	pthread_mutex_init(&c->lock, NULL);
	pthread_cond_init(&c->begun, NULL);
	c->epoll_fd = c->wake_fd = -1;
	c->confine = confine;
	c->poll_min_ns = c->sleep_ns = poll_min_ns;
	c->poll_max_ns = poll_max_ns;
	r = calls_open(c, name);
	if (r) {
		calls_free(c);
		return r;
	}
	*ret = c;
	return 0;
}

/**
 * calls_destroy() - End the thread and free everything
 * @c:		All rings' calls; their descriptors stay the caller's
 */
void calls_destroy(struct calls *c)
{
	pthread_mutex_lock(&c->lock);
	c->quit = true;
	pthread_mutex_unlock(&c->lock);
	calls_signal(c->wake_fd);
	pthread_join(c->thread, NULL);
	calls_free(c);
}

static bool calls_is_socket(int fd)
{
	struct stat status;

	return fd >= 0 && !fstat(fd, &status) && S_ISSOCK(status.st_mode);
}

static bool calls_conf_valid(const struct calls_conf *conf)
{
	return conf->call_addr % sizeof(uint32_t) == 0 &&
	       conf->avail_idx_addr % sizeof(uint16_t) == 0;
}

/**
 * calls_add() - Pass the calls of a ring on from now on, and make its kicks
 * @c:		All rings' calls
 * @index:	Number of the ring
 * @conf:	The ring; its descriptors do not block, and stay the caller's and
 *		open until calls_remove()
 *
 * Its counters go on where they were.
 *
 * Return: 0; -EINVAL: an address has the wrong alignment, or there is no such
 *	   ring; -EBUSY: it was added before; -errno
 */
int calls_add(struct calls *c, uint32_t index, const struct calls_conf *conf)
{
	struct calls_ring *ring;
	int r = 0;

	if (index >= CALLS_MAX_RINGS || !calls_conf_valid(conf))
		return -EINVAL;
	ring = &c->ring[index];
	pthread_mutex_lock(&c->lock);
	if (ring->used)
		r = -EBUSY;
	/* It may be signalled by now: then that is an edge, too. */
	else if (conf->call_fd >= 0)
		r = calls_watch(c, conf->call_fd,
				(uint64_t)++ring->adds << 32 | index);
	if (!r) {
		ring->conf = *conf;
		ring->socket = calls_is_socket(conf->out_fd);
		ring->used = true;
		/*
		 * What the driver has offered so far the back-end sees by itself
		 * when it starts: it looks before it sleeps.
		 */
		ring->seen = calls_avail_idx(conf);
		if (conf->kick_fd >= 0 && !c->polled++)
			c->sleep_ns = c->poll_min_ns;
	}
	pthread_mutex_unlock(&c->lock);
	if (!r && conf->kick_fd >= 0)
		calls_signal(c->wake_fd); /* it may sleep without a limit */
	return r;
}

/**
 * calls_remove() - Pass the calls of a ring on no longer
 * @c:		All rings' calls
 * @index:	Number of the ring; it need not have been added
 *
 * The caller has stopped the back-end.  A call that it made last goes to the
 * master before this returns.  After it the thread touches nothing of the ring.
 */
void calls_remove(struct calls *c, uint32_t index)
{
	struct calls_ring *ring;
	uint64_t value;

	if (index >= CALLS_MAX_RINGS)
		return;
	ring = &c->ring[index];
	pthread_mutex_lock(&c->lock);
	if (ring->used && ring->conf.call_fd >= 0) {
		(void)epoll_ctl(c->epoll_fd, EPOLL_CTL_DEL, ring->conf.call_fd,
				NULL);
		/*
		 * Whether the thread has passed the last one on is not known, as
		 * it reads none: one call too many is harmless.
		 */
		if (read(ring->conf.call_fd, &value, sizeof(value)) > 0)
			calls_forward(ring);
	}
	if (ring->used && ring->conf.kick_fd >= 0)
		c->polled--;
	ring->used = false;
	pthread_mutex_unlock(&c->lock);
}

/**
 * calls_read() - Read the counters of a ring
 * @c:		All rings' calls
 * @index:	Number of the ring
 * @ret:	Its counters since calls_create()
 *
 * Return: 0 or -EINVAL
 */
int calls_read(struct calls *c, uint32_t index, struct calls_stats *ret)
{
	if (index >= CALLS_MAX_RINGS)
		return -EINVAL;
	pthread_mutex_lock(&c->lock);
	*ret = c->ring[index].stats;
	pthread_mutex_unlock(&c->lock);
	return 0;
}

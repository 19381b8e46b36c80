// SPDX-License-Identifier: Apache-2.0
/*
 * The thread of all relays of a process.
 *
 * Theory of operation
 * -------------------
 * The thread waits in epoll_wait() for the sources of all relays.  For each one
 * that is ready it takes the signals, and then signals the target: a signal
 * that comes in between makes the source ready again, where one that came
 * between a signal and a later drain would be lost.  It does so once for each
 * source that is ready, and then looks at all of them again.  So a source that
 * another process signals without end costs every other relay the time of one
 * pass at most.
 *
 * A relay has duplicates of both descriptors, which only it closes.  The number
 * of a relay is that of a slot, which is used again; an event carries the
 * slot's turn as well, and an event of an earlier turn is ignored.
 *
 * Two kinds of locks.  The owner's lock is held in relay_add() and
 * relay_remove(), and never by the thread.  A slot's lock is held while its
 * signals are passed on, by either: once relay_remove() has it, and has closed
 * the descriptors under it, the thread cannot use their numbers.  Nothing waits
 * under a slot's lock (see notifier.h), so neither side waits for long.
 */
#include <errno.h>
#include <fcntl.h>
#include <pthread.h>
#include <signal.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdlib.h>
#include <sys/epoll.h>
#include <sys/eventfd.h>
#include <unistd.h>
#include "relay.h"
#include "notifier.h"

enum {
	RELAY_CHUNK = 256, /* slots that are made at a time */
	RELAY_CHUNKS = RELAY_MAX / RELAY_CHUNK,
	RELAY_BATCH = 64, /* sources that one epoll_wait() returns */
	RELAY_CACHELINE = 64,
};

/* What the event of the eventfd carries that ends the thread. */
static const uint64_t relay_quit = UINT64_MAX;

struct relay_slot {
	pthread_mutex_t lock;
	uint32_t turn; /* grows at each use of the slot; under the lock */
	int source; /* -1: the slot is free */
	int target;
	bool target_is_eventfd;
	int error; /* why the thread has stopped to look at the source */
	uint64_t count; /* how often signals were passed on; atomic */
	uint32_t next_free; /* for the owner */
} __attribute__((aligned(RELAY_CACHELINE)));

struct relay_thread {
	pthread_mutex_t lock; /* the owner's */
	pthread_t thread;
	pid_t pid;
	int epoll_fd;
	int quit_fd;
	uint32_t slots; /* that were made; under the owner's lock */
	uint32_t free; /* first free slot, or RELAY_MAX; likewise */
	struct notifier_signaller signaller;
	struct relay_slot *chunks[RELAY_CHUNKS]; /* atomic: set once */
};

static struct relay_slot *relay_slot(const struct relay_thread *t,
				     uint32_t number)
{
	struct relay_slot *chunk;

	if (number >= RELAY_MAX)
		return NULL;
	/* Pairs with the release in relay_grow(): the slots are initialized. */
	chunk = __atomic_load_n(&t->chunks[number / RELAY_CHUNK],
				__ATOMIC_ACQUIRE);
	return chunk ? &chunk[number % RELAY_CHUNK] : NULL;
}

/* Under the slot's lock. */
static void relay_forward(struct relay_thread *t, struct relay_slot *slot)
{
	int r = notifier_drain(slot->source);

	if (r > 0) {
		/* Only this side of the lock writes it; the owner reads. */
		__atomic_store_n(&slot->count, slot->count + 1,
				 __ATOMIC_RELAXED);
		notifier_signal(&t->signaller, slot->target,
				slot->target_is_eventfd);
	} else if (r < 0) {
		/* The end of a pipe stays readable. */
		slot->error = r;
		epoll_ctl(t->epoll_fd, EPOLL_CTL_DEL, slot->source, NULL);
	}
}

static void relay_ready(struct relay_thread *t, uint64_t event)
{
	struct relay_slot *slot = relay_slot(t, (uint32_t)event);

	if (!slot)
		return;
	pthread_mutex_lock(&slot->lock);
	/* It may have been removed since epoll_wait() returned. */
	if (slot->turn == event >> 32 && slot->source >= 0)
		relay_forward(t, slot);
	pthread_mutex_unlock(&slot->lock);
}

static void *relay_main(void *arg)
{
	struct relay_thread *t = arg;
	struct epoll_event events[RELAY_BATCH];

	for (;;) {
		/* EINTR gives -1, as a debugger may cause it: look again. */
		int n = epoll_wait(t->epoll_fd, events, RELAY_BATCH, -1);

		for (int i = 0; i < n; i++) {
			if (events[i].data.u64 == relay_quit)
				return NULL;
			relay_ready(t, events[i].data.u64);
		}
	}
}

static int relay_watch(struct relay_thread *t, int fd, uint64_t data)
{
	struct epoll_event event = {.events = EPOLLIN, .data.u64 = data};

	return epoll_ctl(t->epoll_fd, EPOLL_CTL_ADD, fd, &event) ? -errno : 0;
}

/*
 * Start the thread.  Signals go to the owner's threads, but for those that a
 * fault of this thread causes.  SIGPIPE stays blocked here, so that a write to
 * an abandoned pipe is an error and no more.
 *
 * System calls: clone(THREAD), epoll_create1, epoll_ctl, epoll_wait, eventfd2.
 * System calls: fcntl(F_DUPFD_CLOEXEC).
 */
static int relay_spawn(struct relay_thread *t)
{
	sigset_t all, old;
	int r;

	sigfillset(&all);
	sigdelset(&all, SIGBUS);
	sigdelset(&all, SIGSEGV);
	sigdelset(&all, SIGFPE);
	sigdelset(&all, SIGILL);
	/* Here, as the thread inherits the mask: it must never run without. */
	pthread_sigmask(SIG_SETMASK, &all, &old);
	r = pthread_create(&t->thread, NULL, relay_main, t);
	pthread_sigmask(SIG_SETMASK, &old, NULL);
	if (!r)
		pthread_setname_np(t->thread, "vhostpci-relay");
	return -r;
}

static void relay_free(struct relay_thread *t)
{
	for (uint32_t i = 0; i < t->slots; i++)
		pthread_mutex_destroy(&relay_slot(t, i)->lock);
	for (int i = 0; i < RELAY_CHUNKS; i++)
		free(t->chunks[i]);
	if (t->quit_fd >= 0)
		close(t->quit_fd);
	if (t->epoll_fd >= 0)
		close(t->epoll_fd);
	notifier_deinit(&t->signaller);
	pthread_mutex_destroy(&t->lock);
	free(t);
}

/**
 * relay_create() - Start the thread, which has no relay yet
 * @ret:	The thread
 *
 * Return: 0 or -errno
 */
int relay_create(struct relay_thread **ret)
{
	struct relay_thread *t = calloc(1, sizeof(*t));
	int r = 0;

	if (!t)
		return -ENOMEM;
	pthread_mutex_init(&t->lock, NULL);
	t->pid = getpid();
	t->free = RELAY_MAX;
	notifier_init(&t->signaller);
	t->epoll_fd = epoll_create1(EPOLL_CLOEXEC);
	t->quit_fd = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK);
	if (t->epoll_fd < 0 || t->quit_fd < 0)
		r = -errno;
	if (!r)
		r = relay_watch(t, t->quit_fd, relay_quit);
	if (!r)
		r = relay_spawn(t);
	if (r) {
		relay_free(t);
		return r;
	}
	*ret = t;
	return 0;
}

/* Make more slots.  Under the owner's lock. */
static int relay_grow(struct relay_thread *t)
{
	struct relay_slot *chunk;

	if (t->slots == RELAY_MAX)
		return -ENOSPC;
	chunk = aligned_alloc(RELAY_CACHELINE, RELAY_CHUNK * sizeof(*chunk));
	if (!chunk)
		return -ENOMEM;
	for (uint32_t i = 0; i < RELAY_CHUNK; i++) {
		chunk[i] = (struct relay_slot){.source = -1, .target = -1};
		pthread_mutex_init(&chunk[i].lock, NULL);
		chunk[i].next_free = i + 1 < RELAY_CHUNK ? t->slots + i + 1
							 : t->free;
	}
	/* Pairs with the acquire in relay_slot(). */
	__atomic_store_n(&t->chunks[t->slots / RELAY_CHUNK], chunk,
			 __ATOMIC_RELEASE);
	t->free = t->slots;
	t->slots += RELAY_CHUNK;
	return 0;
}

/* Fill a free slot, or leave it as it was.  Under the owner's lock. */
static int relay_fill(struct relay_thread *t, uint32_t number, int source,
		      int target, bool target_is_eventfd)
{
	struct relay_slot *slot = relay_slot(t, number);
	int r;

	pthread_mutex_lock(&slot->lock);
	slot->turn++;
	slot->source = source;
	slot->target = target;
	slot->target_is_eventfd = target_is_eventfd;
	slot->error = 0;
	__atomic_store_n(&slot->count, 0, __ATOMIC_RELAXED);
	r = relay_watch(t, source, (uint64_t)slot->turn << 32 | number);
	if (r)
		slot->source = slot->target = -1;
	pthread_mutex_unlock(&slot->lock);
	return r;
}

/* Under the owner's lock. */
static int relay_take(struct relay_thread *t, int source, int target,
		      bool target_is_eventfd)
{
	uint32_t number;
	int r;

	if (t->free == RELAY_MAX) {
		r = relay_grow(t);
		if (r)
			return r;
	}
	number = t->free;
	r = relay_fill(t, number, source, target, target_is_eventfd);
	if (r)
		return r;
	t->free = relay_slot(t, number)->next_free;
	return number;
}

/**
 * relay_add() - Pass on the signals of a source, from now on
 * @t:		Thread
 * @source:	Notifier
 * @target:	Notifier; the caller keeps both
 * @target_is_eventfd: Whether @target is an eventfd
 *
 * Return: number of the relay; -ECHILD; -ENOSPC: there are RELAY_MAX relays;
 *	   -EPERM: @source cannot be waited for; -errno
 */
int relay_add(struct relay_thread *t, int32_t source, int32_t target,
	      uint32_t target_is_eventfd)
{
	int ours, theirs, r;

	if (getpid() != t->pid)
		return -ECHILD;
	ours = fcntl(source, F_DUPFD_CLOEXEC, 0);
	if (ours < 0)
		return -errno;
	theirs = fcntl(target, F_DUPFD_CLOEXEC, 0);
	if (theirs < 0) {
		r = -errno;
		close(ours);
		return r;
	}
	pthread_mutex_lock(&t->lock);
	r = relay_take(t, ours, theirs, target_is_eventfd);
	pthread_mutex_unlock(&t->lock);
	if (r < 0) {
		close(theirs);
		close(ours);
	}
	return r;
}

/* Under the owner's lock. */
static int relay_end(struct relay_thread *t, uint32_t number, uint64_t *count,
		     int32_t *error)
{
	struct relay_slot *slot = relay_slot(t, number);

	/* Only the owner changes it, so it can be read without the slot's. */
	if (!slot || slot->source < 0)
		return -EINVAL;
	/*
	 * First: of a source that is signalled without end the thread would
	 * take the slot's lock again and again.
	 */
	epoll_ctl(t->epoll_fd, EPOLL_CTL_DEL, slot->source, NULL);
	pthread_mutex_lock(&slot->lock);
	/*
	 * What the thread has not seen.  If the front-end has replaced this
	 * kick by another one, the master's driver need not kick again.
	 */
	if (!slot->error)
		relay_forward(t, slot);
	*count = slot->count;
	*error = -slot->error;
	close(slot->source);
	close(slot->target);
	slot->source = slot->target = -1;
	pthread_mutex_unlock(&slot->lock);
	slot->next_free = t->free;
	t->free = number;
	return 0;
}

/**
 * relay_remove() - Pass on what has come, and nothing from then on
 * @t:		Thread
 * @number:	Relay
 * @count:	How often it has passed signals on
 * @error:	errno with which the source ended: EPIPE after the end of a
 *		pipe, 0 if it did not end
 *
 * Return: 0; -EINVAL: there is no such relay; -ECHILD
 */
int relay_remove(struct relay_thread *t, uint32_t number, uint64_t *count,
		 int32_t *error)
{
	int r;

	if (getpid() != t->pid)
		return -ECHILD;
	pthread_mutex_lock(&t->lock);
	r = relay_end(t, number, count, error);
	pthread_mutex_unlock(&t->lock);
	return r;
}

/**
 * relay_count() - How often a relay has passed signals on; takes no lock
 * @t:		Thread
 * @number:	Relay
 *
 * Return: the count of the slot's present or last relay
 */
uint64_t relay_count(const struct relay_thread *t, uint32_t number)
{
	const struct relay_slot *slot = relay_slot(t, number);

	return slot ? __atomic_load_n(&slot->count, __ATOMIC_RELAXED) : 0;
}

/**
 * relay_may_wait() - Whether another process can make the thread wait
 * @t:		Thread
 *
 * Return: 1: the machine allows no asynchronous reads (fs.aio-max-nr, or what
 *	   confines the process), so eventfds are written to; 0
 */
int relay_may_wait(const struct relay_thread *t)
{
	return !t->signaller.context;
}

/**
 * relay_destroy() - Remove all relays, end the thread, free everything
 * @t:		Thread
 *
 * Return: 0 or -ECHILD
 */
int relay_destroy(struct relay_thread *t)
{
	uint64_t count;
	int32_t error;

	if (getpid() != t->pid)
		return -ECHILD;
	pthread_mutex_lock(&t->lock);
	for (uint32_t i = 0; i < t->slots; i++)
		relay_end(t, i, &count, &error); /* -EINVAL: it is free */
	pthread_mutex_unlock(&t->lock);
	eventfd_write(t->quit_fd, 1);
	pthread_join(t->thread, NULL);
	relay_free(t);
	return 0;
}

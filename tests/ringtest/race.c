// SPDX-License-Identifier: Apache-2.0
/*
 * A driver thread and a device thread race over one ring, in real time; over a
 * packed one if PACKED is defined.
 *
 * race flags|event_idx START SECONDS
 *
 * The driver offers a few chains, kicks if it must, and sleeps until all have
 * come back; the device takes chains, gives them back, calls if it must, and
 * sleeps when there are none.  Both wait a random moment before each step, so
 * that each goes to sleep just as the other wakes it.  A side that sleeps while
 * it has work to do has lost a wake-up.
 *
 * Exit status 0, or 1 and a line on stderr.  Prints the number of rounds.
 *
 * The sleeps are relaxed atomics, and the driver's accesses to descriptors,
 * used elements and buffers are plain: only the ring's own barriers order them.
 * So with -fsanitize=thread a missing acquire or release is a reported race.
 */
#include <errno.h>
#include <pthread.h>
#include <sched.h>
#include <stdio.h>
#include <stdlib.h>
#include <time.h>
#include "master.h"

enum {
	SLEEP_LIMIT_S = 5
};

/* An eventfd, without the order that a system call brings. */
struct event {
	uint32_t set;
};

static struct master m;
static struct event kick, call;
static uint32_t end;
static uint64_t rounds;

static void die(const char *what)
{
	fprintf(stderr, "%s\n", what);
	exit(1);
}

static double now(void)
{
	struct timespec t;

	clock_gettime(CLOCK_MONOTONIC, &t);
	return t.tv_sec + t.tv_nsec / 1e9;
}

static uint32_t random_next(uint32_t *x)
{
	*x ^= *x << 13;
	*x ^= *x >> 17;
	*x ^= *x << 5;
	return *x;
}

static void random_pause(uint32_t *x)
{
	for (uint32_t n = random_next(x) % 128; n; n--)
		__asm__ volatile("" ::: "memory");
}

static void event_set(struct event *event)
{
	__atomic_store_n(&event->set, 1, __ATOMIC_RELAXED);
}

/* Returns false at the end of the test. */
static bool event_wait(struct event *event, const char *who)
{
	double limit = 0;

	for (uint32_t i = 1;; i++) {
		if (__atomic_exchange_n(&event->set, 0, __ATOMIC_RELAXED))
			return true;
		if (__atomic_load_n(&end, __ATOMIC_RELAXED))
			return false;
		if (i % 64)
			continue;
		sched_yield();
		if (!limit)
			limit = now() + SLEEP_LIMIT_S;
		if (now() > limit)
			die(who);
	}
}

static void device_take(struct iovec *iov, const struct vq_chain *chain)
{
	const uint64_t *buffer = iov[0].iov_base;

	/* The driver writes the head into the buffer of each chain. */
	if (chain->n_iov != 1 || *buffer != chain->head)
		die("the device reads a stale buffer or descriptor");
	vq_complete(&m.vq, chain, chain->head + 1, false);
}

static void *device(void *arg)
{
	static struct iovec iov[VQ_CHAIN_IOVS];
	struct vq_chain chain;
	uint32_t x = 88172645;
	int r;

	for (;;) {
		random_pause(&x);
		r = vq_next(&m.vq, iov, &chain);
		if (!r) {
			device_take(iov, &chain);
			r = vq_update_used(&m.vq);
			if (r == 1)
				event_set(&call);
		} else if (r == -EAGAIN) {
			r = vq_enable_kicks(&m.vq);
			if (!r && !event_wait(&kick, "lost wake-up: the"
						     " device sleeps"))
				return arg;
		}
		if (r < 0)
			die("the ring is broken");
	}
}

static void driver_collect(uint16_t head)
{
	uint64_t *buffer =
		(void *)(m.memory + MASTER_BUFFERS + head * MASTER_BUFFER);
	uint32_t id, len;

	master_collect(&m, &id, &len);
	if (id != head || len != head + 1U)
		die("the driver reads a stale used element");
	*buffer = UINT64_MAX;
}

static void driver_wait(uint32_t *x)
{
	master_ask_for_call(&m, false);
	random_pause(x);
	while (!master_has_used(&m)) {
		master_ask_for_call(&m, true);
		if (master_has_used(&m))
			return;
		event_wait(&call, "lost wake-up: the driver sleeps");
	}
}

static void driver_round(uint32_t *x)
{
	uint16_t n = 1 + random_next(x) % 3, first = rounds;

	random_pause(x);
	for (uint16_t i = 0; i < n; i++) {
		uint16_t head = (uint16_t)(first + i) % MASTER_NUM;
		uint64_t *buffer = (void *)(m.memory + MASTER_BUFFERS +
					    head * MASTER_BUFFER);

		*buffer = head;
		master_put(&m, head);
		master_publish(&m);
	}
	if (master_must_kick(&m))
		event_set(&kick);
	for (uint16_t i = 0; i < n; i++) {
		driver_wait(x);
		driver_collect((uint16_t)(first + i) % MASTER_NUM);
	}
	rounds++;
}

int main(int argc, char **argv)
{
	uint32_t x = 2463534242;
	pthread_t thread;
	double stop;

	if (argc != 4)
		die("usage: race flags|event_idx START SECONDS");
	if (master_init(&m, strtoul(argv[2], NULL, 10),
			!strcmp(argv[1], "event_idx")))
		die("the ring does not start");
	stop = now() + strtod(argv[3], NULL);
	if (pthread_create(&thread, NULL, device, NULL))
		die("no thread");
	while (rounds % 64 || now() < stop)
		driver_round(&x);
	__atomic_store_n(&end, 1, __ATOMIC_RELAXED);
	pthread_join(thread, NULL);
	printf("%llu\n", (unsigned long long)rounds);
	return 0;
}

// SPDX-License-Identifier: Apache-2.0
/*
 * Rings come and go while the thread of guest/ring/calls.c serves them.
 *
 * calls SECONDS
 *
 * Each round adds a ring whose doorbell register, avail idx and eventfds are
 * new, has its back-end call and its driver move on, removes the ring, and frees
 * all of it.  So with -fsanitize=address or thread an access of the thread after
 * the removal is a report.  A call that was made before the removal must have
 * reached the register by then.
 *
 * Exit status 0, or 1 and a line on stderr.  Prints the number of rounds.
 */
#include <endian.h>
#include <poll.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/eventfd.h>
#include <time.h>
#include <unistd.h>
#include "ring.h"

enum {
	VALUE = 2 << 16 | 3,
	RINGS = 4,
	MINIMUM_NS = 20000,
	MAXIMUM_NS = 200000,
	PATIENCE_MS = 5000
};

/* What one ring has, all of it new in each round. */
struct ring {
	uint32_t *doorbell;
	uint16_t *avail_idx;
	int call_fd;
	int kick_fd;
};

static struct calls *calls;
static uint32_t seed = 1;

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

static uint32_t random_below(uint32_t limit)
{
	seed ^= seed << 13;
	seed ^= seed >> 17;
	seed ^= seed << 5;
	return seed % limit;
}

/* Let the thread reach another place. */
static void wait_a_moment(void)
{
	for (uint32_t n = random_below(3000); n; n--)
		__asm__ volatile("");
	if (!random_below(8))
		usleep(random_below(100));
}

static void ring_add(struct ring *r, uint32_t index)
{
	r->doorbell = calloc(1, sizeof(*r->doorbell));
	r->avail_idx = calloc(1, sizeof(*r->avail_idx));
	r->call_fd = eventfd(0, EFD_NONBLOCK);
	r->kick_fd = eventfd(0, EFD_NONBLOCK);
	struct calls_conf conf = {
		.call_fd = r->call_fd,
		.out_fd = -1,
		.call_addr = (uintptr_t)r->doorbell,
		.call_value = VALUE,
		.kick_fd = r->kick_fd,
		.avail_idx_addr = (uintptr_t)r->avail_idx,
	};

	if (calls_add(calls, index, &conf))
		die("a ring cannot be added");
}

/* The back-end calls the master, or not; return whether it does. */
static bool ring_call(struct ring *r)
{
	uint32_t n = random_below(3);

	for (uint32_t i = 0; i < n; i++) {
		if (eventfd_write(r->call_fd, 1))
			die("an eventfd cannot be signalled");
		wait_a_moment();
	}
	return n;
}

/* The driver offers a buffer, and the back-end is kicked for it. */
static void ring_move(struct ring *r)
{
	struct pollfd kick = {.fd = r->kick_fd, .events = POLLIN};
	eventfd_t value;

	write_once(r->avail_idx, htole16(le16toh(read_once(r->avail_idx)) + 1));
	if (poll(&kick, 1, PATIENCE_MS) != 1)
		die("the driver moved on, and the back-end was not kicked");
	eventfd_read(r->kick_fd, &value);
}

static void ring_remove(struct ring *r, uint32_t index, bool called)
{
	calls_remove(calls, index);
	uint32_t value = read_once(r->doorbell);

	if (value != (called ? htole32(VALUE) : 0))
		die(called ? "a call was lost" : "a call came from nowhere");
	close(r->call_fd);
	close(r->kick_fd);
	free(r->doorbell);
	free(r->avail_idx);
}

static void round_of(struct ring *rings)
{
	bool called[RINGS];

	for (int i = 0; i < RINGS; i++)
		ring_add(&rings[i], i);
	for (int i = 0; i < RINGS; i++)
		called[i] = ring_call(&rings[i]);
	if (!random_below(4))
		ring_move(&rings[random_below(RINGS)]);
	for (int i = 0; i < RINGS; i++)
		ring_remove(&rings[i], i, called[i]);
}

int main(int argc, char **argv)
{
	struct ring rings[RINGS];
	uint64_t rounds = 0;

	if (argc != 2)
		die("usage: calls SECONDS");
	double end = now() + atof(argv[1]);

	if (calls_create("calls", 0, MINIMUM_NS, MAXIMUM_NS, &calls))
		die("the thread cannot be started");
	for (; now() < end; rounds++)
		round_of(rings);
	calls_destroy(calls);
	printf("%llu\n", (unsigned long long)rounds);
	return 0;
}

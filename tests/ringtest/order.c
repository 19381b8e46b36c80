// SPDX-License-Identifier: Apache-2.0
/*
 * Memory orders and wake-ups of the split virtqueue, on machine.h.
 *
 * order CASE flags|event_idx START: exit status 0, or 1 and a line on stderr.
 *
 * There are two patterns for wake-ups, and each is store, fence, load on both
 * sides: the device asks for kicks and looks at avail idx, while the driver
 * raises avail idx and looks whether it must kick; and the same with the used
 * index and interrupts.  The master acts at each moment in turn: before the
 * first access of the ring code, between any two, and after the last.
 */
#include <stdio.h>
#include <stdlib.h>
#include "machine.h"
#include "master.h"

static struct master m;
static struct iovec iov[VQ_CHAIN_IOVS];

static bool event_idx;
static uint16_t start;

static bool kicked; /* the driver kicked */
static bool saw_used; /* the driver found a used chain by itself */
static int acts; /* how often the master acted */

static struct machine machine_of(void (*act)(void *), int at)
{
	return (struct machine){
		.memory = m.memory,
		.size = sizeof(m.memory),
		.act = act,
		.at = at,
		.poison = MACHINE_NEVER,
	};
}

static void init(void)
{
	if (master_init(&m, start, event_idx))
		die("the ring does not start");
	kicked = saw_used = false;
	acts = 0;
}

static void take(uint16_t head)
{
	struct vq_chain chain;

	if (vq_next(&m.vq, iov, &chain) || chain.head != head)
		die("chain %u does not come", head);
	vq_complete(&m.vq, head, 0);
}

/* One chain through the ring, so that it is no longer in its first state. */
static void warm_up(void)
{
	master_put(&m, 1);
	master_publish(&m);
	m.kicked = m.avail_idx;
	take(1);
	vq_update_used(&m.vq);
	m.last_used++;
	master_ask_for_call(&m, false);
}

static void offer_a_chain(void *arg)
{
	(void)arg;
	acts++;
	master_put(&m, 2);
	master_publish(&m);
	kicked = master_must_kick(&m);
}

static void check_kick(bool warm, int at, int *n)
{
	struct machine machine = machine_of(offer_a_chain, at);
	int r;

	init();
	if (warm)
		warm_up();
	machine_start(&machine);
	r = vq_enable_kicks(&m.vq);
	*n = machine_stop();
	if (acts != (at >= 0))
		die("the master has acted %d times", acts);
	if (at < 0 && r)
		die("vq_enable_kicks() returns %d with no chain to take", r);
	if (at >= 0 && r != 1 && !kicked)
		die("lost wake-up: a chain comes before access %d of %d, the"
		    " device sleeps, and the driver does not kick",
		    at, *n);
}

static void kicks(void)
{
	for (int warm = 0; warm < 2; warm++) {
		int n;

		check_kick(warm, MACHINE_NEVER, &n);
		if (n < 2)
			die("vq_enable_kicks() makes only %d accesses", n);
		for (int at = 0; at <= n; at++)
			check_kick(warm, at, &(int){0});
	}
}

static void ask_for_call(void *arg)
{
	(void)arg;
	acts++;
	master_ask_for_call(&m, true);
	saw_used = master_has_used(&m);
}

static void check_call(int at, int *n)
{
	struct machine machine = machine_of(ask_for_call, at);
	int r;

	init();
	warm_up();
	master_put(&m, 2);
	master_publish(&m);
	take(2);
	machine_start(&machine);
	r = vq_update_used(&m.vq);
	*n = machine_stop();
	if (acts != (at >= 0))
		die("the master has acted %d times", acts);
	if (at < 0 && r)
		die("an interrupt that the driver does not want");
	if (at >= 0 && !r && !saw_used)
		die("lost wake-up: the driver asks for an interrupt before"
		    " access %d of %d, sees no used chain, and gets none",
		    at, *n);
}

static void calls(void)
{
	int n;

	check_call(MACHINE_NEVER, &n);
	if (n < 4)
		die("vq_update_used() makes only %d accesses", n);
	for (int at = 0; at <= n; at++)
		check_call(at, &(int){0});
}

/* The new descriptor and slot arrive late, the new avail idx early. */
static void avail(void)
{
	struct machine machine = machine_of(NULL, MACHINE_NEVER);
	struct master_ring *ring = master_ring(&m);
	const struct master_desc fresh = {master_buffer(3), 5, 0, 0};
	const uint16_t head = 3;
	struct vq_chain chain;

	init();
	warm_up();
	/* Stale, and not at all hostile. */
	ring->desc[3] = (struct master_desc){master_buffer(6), 7, 0, 0};
	ring->desc[4] = (struct master_desc){master_buffer(4), 9, 0, 0};
	ring->avail.ring[m.avail_idx % MASTER_NUM] = 4;

	machine_hold_back(&ring->desc[3], &fresh.addr, 8, &ring->avail.idx);
	machine_hold_back(&ring->desc[3].len, &fresh.len, 8, &ring->avail.idx);
	machine_hold_back(&ring->avail.ring[m.avail_idx % MASTER_NUM], &head, 2,
			  &ring->avail.idx);
	m.avail_idx++;
	master_publish(&m);

	machine_start(&machine);
	if (vq_next(&m.vq, iov, &chain))
		die("the chain does not come");
	machine_stop();
	if (chain.head != 3)
		die("avail idx is new, the head of the chain is stale");
	if (chain.len != 5 ||
	    iov[0].iov_base != m.memory + MASTER_BUFFERS + 3 * MASTER_BUFFER)
		die("avail idx is new, the descriptor is stale");
}

/* The driver reads the used elements as soon as it sees used idx. */
static void read_used(void *arg)
{
	struct master_ring *ring = master_ring(&m);

	(void)arg;
	acts++;
	while (master_has_used(&m)) {
		uint16_t i = m.last_used - (uint16_t)(start + 1);
		uint16_t slot = m.last_used % MASTER_NUM;

		if (ring->used.ring[slot].id != 2U + i)
			die("used idx is new, the head of chain %u is stale",
			    i);
		if (ring->used.ring[slot].len != 100U + i)
			die("used idx is new, the length of chain %u is stale",
			    i);
		m.last_used++;
	}
}

static void used(void)
{
	struct machine machine = machine_of(NULL, MACHINE_NEVER);
	struct master_ring *ring = master_ring(&m);
	struct vq_chain chain;

	init();
	warm_up();
	memset(ring->used.ring, 0xff, sizeof(ring->used.ring));
	for (uint16_t i = 0; i < 3; i++)
		master_put(&m, 2 + i);
	master_publish(&m);
	for (uint16_t i = 0; i < 3; i++) {
		if (vq_next(&m.vq, iov, &chain))
			die("chain %u does not come", i);
		vq_complete(&m.vq, chain.head, 100 + i);
	}
	machine.eager = &ring->used.idx;
	machine.seen = read_used;
	machine_start(&machine);
	vq_update_used(&m.vq);
	machine_stop();
	if (acts != 1 || m.last_used != (uint16_t)(start + 4))
		die("the driver has seen used idx move %d times", acts);
}

static const struct {
	const char *name;
	void (*run)(void);
} cases[] = {
	{"kicks", kicks},
	{"calls", calls},
	{"avail", avail},
	{"used", used},
};

int main(int argc, char **argv)
{
	if (argc != 4)
		die("usage: order CASE flags|event_idx START");
	event_idx = !strcmp(argv[2], "event_idx");
	start = strtoul(argv[3], NULL, 10);
	for (size_t i = 0; i < sizeof(cases) / sizeof(*cases); i++) {
		if (strcmp(argv[1], cases[i].name))
			continue;
		cases[i].run();
		return 0;
	}
	die("%s: no such case", argv[1]);
	return 1;
}

// SPDX-License-Identifier: Apache-2.0
/*
 * Memory orders and wake-ups of a virtqueue, on machine.h; of a packed one if
 * PACKED is defined.
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
	vq_complete(&m.vq, &chain, 0, false);
}

/* One chain through the ring, so that it is no longer in its first state. */
static void warm_up(void)
{
	uint32_t id, len;

	master_put(&m, 1);
	master_publish(&m);
	m.kicked = m.avail_idx;
	take(1);
	vq_update_used(&m.vq);
	master_collect(&m, &id, &len);
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
	if (n < 3)
		die("vq_update_used() makes only %d accesses", n);
	for (int at = 0; at <= n; at++)
		check_call(at, &(int){0});
}

#ifdef PACKED
#include "order_packed.h"
#else
#include "order_split.h"
#endif

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

// SPDX-License-Identifier: Apache-2.0
/*
 * The device of a packed ring is killed before each of its stores in turn, and
 * so is its successor; the next one goes on.  The driver must see the chains of a packet together, and
 * each chain used once, in order, with the length that its own device wrote.
 *
 * kill CASE START: exit status 0, or 1 and a line on stderr.  Prints how many
 * stores the device makes, and how often its successor could not start.
 */
#include <errno.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include "vq.h"

enum {
	NUM = 8,
	GUEST = 0x100000,
	EVENTS = 16 * NUM,
	TABLE = 0x400, /* of two descriptors for each id */
	BUFFERS = 0x800,
	BUFFER = 64,
	SIZE = 0x1000,
	AVAIL = 1 << 7,
	USED = 1 << 15
};

/* What the driver offers, and how much of it the device fills. */
struct offer {
	uint16_t n_desc;
	bool table;
	uint32_t used; /* bytes */
	bool more; /* the next chain has more of the same packet */
};

struct kill_case {
	const char *name;
	bool writable;
	bool in_order;
	uint16_t n;
	struct offer offer[4];
};

static const struct kill_case cases[] = {
	{"one", true, false, 1, {{1, false, 20, false}}},
	{"packets",
	 true,
	 false,
	 3,
	 {{1, false, 20, false}, {1, false, 64, false}, {1, false, 1, false}}},
	{"long-packet",
	 true,
	 false,
	 4,
	 {{1, false, 64, true},
	  {1, false, 64, true},
	  {1, false, 7, false},
	  {1, false, 9, false}}},
	{"two-long-packets",
	 true,
	 false,
	 4,
	 {{1, false, 64, true},
	  {1, false, 5, false},
	  {1, false, 64, true},
	  {1, false, 6, false}}},
	{"chains",
	 true,
	 false,
	 2,
	 {{3, false, 100, false}, {2, false, 80, false}}},
	{"sent",
	 false,
	 false,
	 3,
	 {{1, false, 0, false}, {2, false, 0, false}, {1, true, 0, false}}},
	{"sent-in-order",
	 false,
	 true,
	 3,
	 {{2, false, 0, false}, {1, true, 0, false}, {1, false, 0, false}}},
	{"packet-of-tables",
	 true,
	 false,
	 2,
	 {{1, true, 128, true}, {1, true, 3, false}}},
	{"packet-of-chains",
	 true,
	 false,
	 2,
	 {{2, false, 128, true}, {2, false, 3, false}}},
};

struct desc {
	uint64_t addr;
	uint32_t len;
	uint16_t id;
	uint16_t flags;
};

static uint8_t memory[SIZE] __attribute__((aligned(4096)));
static struct ring_position position __attribute__((aligned(64)));
static struct mem mem;
static struct vq vq;
static struct iovec iov[VQ_CHAIN_IOVS];
static const struct kill_case *the_case;
static uint16_t start;
static jmp_buf killed;
static int stores_left; /* -1: it lives */
static int stores;

static void die(const char *format, ...)
{
	va_list args;

	va_start(args, format);
	vfprintf(stderr, format, args);
	va_end(args);
	fputc('\n', stderr);
	exit(1);
}

void kill_before_store(void)
{
	stores++;
	if (stores_left >= 0 && !stores_left--)
		longjmp(killed, 1);
}

static struct desc *desc_at(uint16_t at)
{
	return (struct desc *)(void *)memory + (at & 0x7fff);
}

static uint16_t add(uint16_t at, unsigned int n)
{
	unsigned int i = (at & 0x7fff) + n;

	return i < NUM ? at + n : (i - NUM) | (~at & 0x8000);
}

static void put(struct desc *d, uint16_t buffer, uint16_t id, uint16_t flags)
{
	*d = (struct desc){GUEST + BUFFERS + buffer * BUFFER, BUFFER, id,
			   flags};
}

/* Make chain number `id` available; returns the position behind it. */
static uint16_t offer(uint16_t at, uint16_t id, uint16_t buffer)
{
	const struct offer *o = &the_case->offer[id];
	uint16_t write = the_case->writable ? 2 : 0;
	struct desc *table = (void *)(memory + TABLE + 32 * id);

	for (uint16_t i = 0; i < o->n_desc; i++, at = add(at, 1)) {
		uint16_t flags = at & 0x8000 ? AVAIL : USED;

		if (o->table) {
			*desc_at(at) = (struct desc){GUEST + TABLE + 32 * id,
						     32, id, flags | 4};
			put(&table[0], buffer, 0, write);
			put(&table[1], buffer + 1, 0, write);
		} else {
			put(desc_at(at), buffer + i, id,
			    flags | write | (i + 1 < o->n_desc));
		}
	}
	return at;
}

static void init(void)
{
	struct mem_region region = {GUEST, SIZE, (uintptr_t)memory};
	uint16_t at = start, buffer = 0;

	memset(memory, 0, sizeof(memory));
	memset(&position, 0, sizeof(position));
	if (mem_set(&mem, &region, 1))
		die("no memory");
	/* All before the start is used. */
	for (uint16_t i = 0; i < NUM; i++)
		desc_at(i)->flags = (i < (start & 0x7fff)) == !!(start & 0x8000)
					    ? AVAIL | USED
					    : 0;
	for (uint16_t id = 0; id < the_case->n; id++, buffer += 4)
		at = offer(at, id, buffer);
}

static int start_at(uint16_t base)
{
	struct ring_conf conf = {
		.desc = GUEST,
		.driver = GUEST + EVENTS,
		.device = GUEST + EVENTS + 4,
		.size = NUM,
		.base = base,
		.flags = RING_PACKED | RING_INDIRECT |
			 (the_case->in_order ? RING_IN_ORDER : 0),
		.position_addr = (uintptr_t)&position,
		.origin = 5,
	};

	return vq_init(&vq, &mem, &conf, the_case->writable);
}

static uint32_t size_of(const struct offer *o)
{
	return BUFFER * (o->table ? 2 : o->n_desc);
}

/* The device takes what there is from chain number `id` on, and gives it back. */
static void serve(uint16_t id)
{
	struct vq_chain chain;

	for (; id < the_case->n; id++) {
		const struct offer *o = &the_case->offer[id];

		if (vq_next(&vq, iov, &chain) || chain.head != id)
			die("chain %u does not come", id);
		if (chain.len != size_of(o))
			die("chain %u has length %u", id,
			    (unsigned int)chain.len);
		vq_complete(&vq, &chain, o->used, o->more);
	}
	if (!vq_next(&vq, iov, &chain))
		die("a chain comes that was not offered");
	if (vq.n_done)
		vq_update_used(&vq);
}

/* Where a successor goes on: docs/metadata.md, "Position". */
static uint16_t resolve(void)
{
	uint16_t at = position.position, next = position.position >> 16;

	if (at == next)
		return at;
	return !!(desc_at(at)->flags & USED) == !!(at & 0x8000) ? next : at;
}

/* What the driver sees: how many chains are used, from the first on. */
static uint16_t look(void)
{
	uint16_t at = start, id = 0;

	while (id < the_case->n) {
		const struct desc *d = desc_at(at);
		uint16_t wrap = at & 0x8000 ? AVAIL | USED : 0;

		if ((d->flags & (AVAIL | USED)) != wrap)
			break;
		if (d->id < id || d->id >= the_case->n)
			die("the driver gets id %u, not %u", d->id, id);
		if (d->id > id && !the_case->in_order)
			die("the driver misses id %u", id);
		if (d->len != the_case->offer[d->id].used)
			die("chain %u has %u bytes", id, d->len);
		for (uint16_t last = d->id; id <= last; id++)
			at = add(at, the_case->offer[id].n_desc);
	}
	if (id && the_case->offer[id - 1].more)
		die("the driver sees %u chains, and no end of the packet", id);
	return id;
}

static uint16_t chains_before(uint16_t base)
{
	uint16_t at = start, id = 0;

	for (; at != base; id++) {
		if (id == the_case->n)
			die("the position is behind all chains");
		at = add(at, the_case->offer[id].n_desc);
	}
	return id;
}

/* Start a successor that is killed too, in its start or its work. */
static void be_killed_again(int kill_at)
{
	stores_left = kill_at;
	if (!setjmp(killed) && !start_at(resolve()))
		serve(look());
	stores_left = -1;
}

/* Returns whether the successor could start. */
static bool check(int kill_at, int kill_again)
{
	uint16_t base, seen;

	init();
	stores_left = -1;
	if (start_at(start))
		die("the ring does not start");
	stores_left = kill_at;
	stores = 0;
	if (!setjmp(killed))
		serve(0);
	stores_left = -1;

	if (kill_again >= 0)
		be_killed_again(kill_again);
	seen = look();
	base = resolve();
	if (chains_before(base) != seen)
		die("killed before store %d, the driver sees %u chains and the"
		    " successor %u",
		    kill_at, seen, chains_before(base));
	if (start_at(base))
		return false;
	if (look() != seen)
		die("the start of a successor shows the driver chains");
	serve(seen);
	if (look() != the_case->n)
		die("the driver sees %u chains in the end", look());
	return true;
}

int main(int argc, char **argv)
{
	int n, refused = 0;

	if (argc != 3)
		die("usage: kill CASE START");
	start = strtoul(argv[2], NULL, 0);
	for (size_t i = 0; i < sizeof(cases) / sizeof(*cases); i++)
		if (!strcmp(argv[1], cases[i].name))
			the_case = &cases[i];
	if (!the_case)
		die("%s: no such case", argv[1]);
	check(-1, -1);
	n = stores;
	for (int at = 0; at <= n; at++) {
		refused += !check(at, -1);
		for (int again = 0; again < 3 * n; again++)
			check(at, again);
	}
	printf("%d %d\n", n, refused);
	return 0;
}

// SPDX-License-Identifier: Apache-2.0
/*
 * A master's card, fast enough to measure what is behind it: a driver of two split
 * rings, and a TAP in whose kernel the master's packets are made.
 *
 * card MEMORY TAP RX_KICK RX_CALL TX_KICK TX_CALL
 *	Descriptors that it inherits.  It prints "ready" when it has offered its
 *	receive buffers; it ends when it is killed.
 *
 * Rings and buffers lie where card.py says.  No mergeable buffers, no EVENT_IDX, no
 * indirect descriptors: a buffer takes the longest packet.
 */
#include <errno.h>
#include <linux/virtio_ring.h>
#include <poll.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

enum {
	NUM = 256,
	RINGS = 0x10000, /* this one and those below: as in card.py */
	RING_BYTES = 0x10000,
	AVAIL_AT = 0x4000,
	USED_AT = 0x8000,
	BUFFERS = 0x100000,
	BUFFER = 0x11000,
	MEMORY = 64 << 20,
	BATCH = 64
};

struct ring {
	struct vring_desc *desc;
	struct vring_avail *avail;
	struct vring_used *used;
	uint8_t *memory;
	uint64_t buffers; /* guest physical address of the first one */
	uint16_t offered, collected;
	int kick, call;
};

static uint8_t *buffer(const struct ring *r, uint32_t i)
{
	return r->memory + r->buffers + (uint64_t)i * BUFFER;
}

static void ring_init(struct ring *r, uint8_t *memory, int index)
{
	uint8_t *at = memory + RINGS + index * RING_BYTES;

	r->desc = (void *)at;
	r->avail = (void *)(at + AVAIL_AT);
	r->used = (void *)(at + USED_AT);
	r->memory = memory;
	r->buffers = BUFFERS + (uint64_t)index * NUM * BUFFER;
	for (int i = 0; i < NUM; i++)
		r->desc[i].addr = r->buffers + (uint64_t)i * BUFFER;
}

static void offer(struct ring *r, uint16_t i)
{
	r->avail->ring[r->offered++ % NUM] = i;
}

/* Show what has been offered, and kick if the device wants that. */
static void publish(struct ring *r)
{
	uint64_t one = 1;

	if (r->avail->idx == r->offered)
		return;
	__atomic_store_n(&r->avail->idx, r->offered, __ATOMIC_RELEASE);
	__atomic_thread_fence(__ATOMIC_SEQ_CST);
	if (!(__atomic_load_n(&r->used->flags, __ATOMIC_RELAXED) &
	      VRING_USED_F_NO_NOTIFY) &&
	    write(r->kick, &one, sizeof(one)) < 0)
		exit(1);
}

static bool has_used(const struct ring *r)
{
	return __atomic_load_n(&r->used->idx, __ATOMIC_ACQUIRE) != r->collected;
}

static struct vring_used_elem collect(struct ring *r)
{
	return r->used->ring[r->collected++ % NUM];
}

static void want_calls(struct ring *r, bool wanted)
{
	__atomic_store_n(&r->avail->flags,
			 wanted ? 0 : VRING_AVAIL_F_NO_INTERRUPT,
			 __ATOMIC_SEQ_CST);
}

/* Hand packets to the TAP; what it refuses is lost, as on a card. */
static bool receive(struct ring *r, int tap)
{
	int n;

	for (n = 0; n < BATCH && has_used(r); n++) {
		struct vring_used_elem used = collect(r);

		if (write(tap, buffer(r, used.id), used.len) < 0 &&
		    errno != EINVAL && errno != EIO && errno != EAGAIN) {
			perror("write to the TAP");
			exit(1);
		}
		offer(r, used.id);
	}
	publish(r);
	return n;
}

/* Send what the TAP has, as long as there are buffers. */
static bool send_all(struct ring *r, int tap, uint16_t *slots, int *free_slots)
{
	int n;

	while (has_used(r))
		slots[(*free_slots)++] = collect(r).id;
	for (n = 0; n < BATCH && *free_slots; n++) {
		uint16_t i = slots[*free_slots - 1];
		ssize_t size = read(tap, buffer(r, i), BUFFER);

		if (size <= 0)
			break;
		--*free_slots;
		r->desc[i].len = size;
		offer(r, i);
	}
	publish(r);
	return n;
}

static void sleep_until_work(struct ring *rx, struct ring *tx, int tap,
			     bool room)
{
	struct pollfd fds[] = {{.fd = rx->call, .events = POLLIN},
			       {.fd = tx->call, .events = POLLIN},
			       {.fd = tap, .events = room ? POLLIN : 0}};
	uint64_t count;

	want_calls(rx, true);
	want_calls(tx, !room);
	if (!has_used(rx) && (room || !has_used(tx)))
		poll(fds, 3, 100);
	for (int i = 0; i < 2; i++)
		if (read(fds[i].fd, &count, sizeof(count)) < 0 &&
		    errno != EAGAIN)
			exit(1);
	want_calls(rx, false);
	want_calls(tx, false);
}

int main(int argc, char **argv)
{
	struct ring rx = {0}, tx = {0};
	uint16_t slots[NUM];
	int free_slots = NUM, tap;
	uint8_t *memory;

	if (argc != 7)
		return 2;
	memory = mmap(NULL, MEMORY, PROT_READ | PROT_WRITE, MAP_SHARED,
		      atoi(argv[1]), 0);
	if (memory == MAP_FAILED)
		return 1;
	tap = atoi(argv[2]);
	rx.kick = atoi(argv[3]);
	rx.call = atoi(argv[4]);
	tx.kick = atoi(argv[5]);
	tx.call = atoi(argv[6]);
	ring_init(&rx, memory, 0);
	ring_init(&tx, memory, 1);
	for (int i = 0; i < NUM; i++) {
		slots[i] = i;
		rx.desc[i].len = BUFFER;
		rx.desc[i].flags = VRING_DESC_F_WRITE;
		offer(&rx, i);
	}
	publish(&rx);
	puts("ready");
	fflush(stdout);
	for (;;) {
		bool busy = receive(&rx, tap);

		if (send_all(&tx, tap, slots, &free_slots) || busy)
			continue;
		sleep_until_work(&rx, &tx, tap, free_slots);
	}
}

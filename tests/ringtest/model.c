// SPDX-License-Identifier: Apache-2.0
/*
 * A model of both ends: what goes in comes out, in order, once, whatever is
 * negotiated.
 *
 * model FIRST COUNT PACKETS: so many seeds, so many packets in each direction
 *
 * Each seed chooses the format of the rings, their size, the features, and what a
 * driver may choose: lengths, how a packet lies in its buffers, when it looks,
 * whether it wants calls.  The rings are stopped and started again at any time,
 * as by a change of memory.  The far side of the TAP, which is a socket, is read
 * seldom enough to be full at times.
 *
 * Exit status 0, or 1 and a line on stderr.  Prints how many packets crossed, how
 * many were lost, as is allowed, when a ring was stopped, and the stops.
 */
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/eventfd.h>
#include <sys/mman.h>
#include <sys/socket.h>
#include <unistd.h>
#include "model.h"
#include "ring.h"

enum {
	MEMORY = 4 << 20,
	RINGS = 128 << 10, /* of it */
	STRIDE = MODEL_SLOT + MODEL_TABLE,
	SLOTS = 256, /* for each ring, at most */
	/* Where one region of the memory ends and the next begins: in a slot. */
	BORDER = RINGS + 100 * STRIDE + 1000,
	HDR_MAX = 12,
	SHORTEST = 4,
	LONGEST = 3000,
	PATTERN = 251,
	BURST = 40,
	ROUNDS = 1000 /* for a packet, at most */
};

struct end {
	struct driver d;
	struct ring_meta meta;
	struct ring_position position;
	int kick_fd, call_fd;
	uint32_t slot[SLOTS]; /* free, in the order in which they came back */
	uint32_t slot_first, n_slots;
	uint32_t sent, got;
};

static struct model {
	uint64_t x;
	unsigned long seed;
	uint32_t packets;
	uint8_t *memory;
	bool mergeable, indirect;
	uint16_t hdr_len;
	uint16_t least; /* length of a receive chain */
	uint32_t flags;
	uint16_t start;
	struct worker *worker;
	int tap, far;
	struct end end[RING_COUNT];
	uint8_t part[2 * MODEL_SLOT]; /* a packet that comes in several buffers */
	uint32_t part_len, parts, missing;
	uint64_t lost, stops;
} m;

static uint8_t pattern[PATTERN + LONGEST];

void model_fail(const char *what)
{
	fprintf(stderr,
		"seed %lu: %s; %s, %u entries, flags %u, header of %u; sent %u"
		" and %u, %u and %u came\n",
		m.seed, what, m.end[0].d.packed ? "packed" : "split",
		m.end[0].d.num, m.flags, m.hdr_len, m.end[RING_RX].sent,
		m.end[RING_TX].sent, m.end[RING_RX].got, m.end[RING_TX].got);
	exit(1);
}

/* Less than @n. */
static uint32_t draw(uint32_t n)
{
	m.x ^= m.x << 13; /* xorshift64 */
	m.x ^= m.x >> 7;
	m.x ^= m.x << 17;
	return (m.x >> 32) % n;
}

static uint32_t draw_from(uint32_t low, uint32_t high)
{
	return low + draw(high - low + 1);
}

/* Its number, and bytes that tell a wrong piece, or another packet's. */
static uint32_t make_packet(uint8_t *to, uint32_t number, uint32_t len)
{
	memset(to, 0, m.hdr_len);
	memcpy(to + m.hdr_len, &number, sizeof(number));
	memcpy(to + m.hdr_len + sizeof(number), pattern + number % PATTERN,
	       len - sizeof(number));
	return m.hdr_len + len;
}

static uint64_t unseen(void)
{
	struct ring_status status;

	worker_read_ring(m.worker, RING_RX, &status);
	return status.stats.drop_stop - m.lost;
}

/* Check that a packet is whole, and the next one in order. */
static void arrived(int ring, const uint8_t *packet, uint32_t len)
{
	struct end *e = &m.end[ring];
	const uint8_t *data = packet + m.hdr_len;
	uint32_t number, gap;

	if (len < m.hdr_len + sizeof(number))
		model_fail("a packet is too short");
	memcpy(&number, data, sizeof(number));
	len -= m.hdr_len + sizeof(number);
	if (len > LONGEST ||
	    memcmp(data + sizeof(number), pattern + number % PATTERN, len))
		model_fail("a packet has changed");
	/* What was held for its last buffers at a stop is lost, and counted. */
	gap = number - e->got;
	if (gap && (ring == RING_TX || gap > unseen()))
		model_fail("a packet is lost, comes twice, or before its turn");
	m.lost += gap;
	e->got = number + 1;
}

static uint16_t cut(uint32_t len, uint16_t most, uint16_t *pieces)
{
	uint16_t n = draw_from(1, most), i = 0;

	for (; i + 1 < n && len > 1; i++) {
		pieces[i] = draw_from(1, len - 1);
		len -= pieces[i];
	}
	pieces[i++] = len;
	return i;
}

/* Offer a chain of @len bytes.  Returns its slot, or 0 if there is no room. */
static uint32_t offer(int ring, uint32_t len)
{
	struct end *e = &m.end[ring];
	bool indirect = m.indirect && draw(2);
	uint16_t most = indirect || e->d.room > 5 ? 5 : e->d.room;
	uint16_t pieces[MODEL_PIECES], n;
	uint32_t slot;

	if (!e->n_slots || !e->d.room)
		return 0;
	n = cut(len, indirect ? MODEL_PIECES : most, pieces);
	slot = e->slot[e->slot_first++ % SLOTS];
	e->n_slots--;
	driver_offer(&e->d, slot, pieces, n, indirect);
	return slot;
}

static void kick(struct end *e)
{
	if (driver_must_kick(&e->d))
		eventfd_write(e->kick_fd, 1);
}

/* The master sends a burst. */
static void send_some(void)
{
	struct end *e = &m.end[RING_TX];
	uint32_t len, slot;

	for (uint32_t n = draw_from(1, BURST); n && e->sent < m.packets; n--) {
		len = draw_from(SHORTEST, LONGEST);
		slot = offer(RING_TX, m.hdr_len + len);
		if (!slot)
			break;
		/* After the offer: the worker has no thread, and has not looked. */
		make_packet(m.memory + slot, e->sent++, len);
	}
	kick(e);
}

/* The master posts receive buffers. */
static void post_some(void)
{
	for (uint32_t n = draw_from(1, BURST); n; n--)
		if (!offer(RING_RX, draw_from(m.least, MODEL_SLOT)))
			break;
	kick(&m.end[RING_RX]);
}

/* Put the buffers of a packet together, by the number in the first ones. */
static void take_buffer(const struct model_chain *chain, uint32_t len)
{
	if (len > chain->len || m.part_len + len > sizeof(m.part))
		model_fail("more bytes came than the buffers hold");
	memcpy(m.part + m.part_len, m.memory + chain->slot, len);
	m.part_len += len;
	m.parts++;
	if (!m.mergeable)
		m.missing = 1;
	else if (!m.missing && m.part_len >= HDR_MAX)
		m.missing = m.part[10] | m.part[11] << 8;
	if (m.missing != m.parts) {
		if (len < chain->len)
			model_fail("a buffer of a longer packet is not full");
		return;
	}
	arrived(RING_RX, m.part, m.part_len);
	m.part_len = m.parts = m.missing = 0;
}

static void check_call(struct end *e)
{
	eventfd_t calls = 0;

	if (eventfd_read(e->call_fd, &calls) && e->d.asked)
		model_fail("the call is lost that the driver has asked for");
}

/* The master looks at what came back. */
static void collect(int ring)
{
	struct end *e = &m.end[ring];
	struct model_chain chain;
	uint32_t len;

	if (driver_has_used(&e->d))
		check_call(e);
	while (driver_collect(&e->d, &chain, &len)) {
		e->slot[(e->slot_first + e->n_slots++) % SLOTS] = chain.slot;
		if (ring == RING_RX)
			take_buffer(&chain, len);
		else if (len)
			model_fail("bytes were written to a packet sent");
	}
	driver_ask(&e->d, draw(2));
}

/* The slave sends a burst. */
static void feed(void)
{
	struct end *e = &m.end[RING_RX];
	uint8_t packet[HDR_MAX + LONGEST];
	uint32_t len;

	for (uint32_t n = draw_from(1, BURST); n && e->sent < m.packets; n--) {
		len = make_packet(packet, e->sent,
				  draw_from(SHORTEST, LONGEST));
		if (send(m.far, packet, len, 0) < 0)
			break;
		e->sent++;
	}
}

/* The slave takes what has come. */
static void drain(void)
{
	uint8_t packet[2 * MODEL_SLOT];
	ssize_t len;

	while ((len = recv(m.far, packet, sizeof(packet), 0)) > 0)
		arrived(RING_TX, packet, len);
}

static void start(int ring, uint16_t base)
{
	struct end *e = &m.end[ring];
	struct ring_conf conf = {
		.desc = driver_guest(&e->d, e->d.desc),
		.driver = driver_guest(&e->d, e->d.avail),
		.device = driver_guest(&e->d, e->d.used),
		.size = e->d.num,
		.base = base,
		.flags = m.flags,
		.hdr_len = m.hdr_len,
		.max_packet = RING_MAX_PACKET,
		.kick_fd = e->kick_fd,
		.call_fd = e->call_fd,
		.meta_addr = (uintptr_t)&e->meta,
		.position_addr = (uintptr_t)&e->position,
		.origin = 1,
	};

	if (worker_start_ring(m.worker, ring, &conf))
		model_fail("a ring does not start");
}

/* Stop a ring, and start it again where it stands. */
static void interrupt(void)
{
	int ring = draw(RING_COUNT);
	int base = worker_stop_ring(m.worker, ring, 1000);

	if (base < 0)
		model_fail("a ring does not stop");
	start(ring, base);
	m.stops++;
}

static bool done(void)
{
	return m.end[RING_TX].got == m.packets &&
	       m.end[RING_RX].sent == m.packets &&
	       m.end[RING_RX].got + unseen() == m.packets;
}

static void act(void)
{
	uint32_t what = draw(26);

	if (what < 4)
		send_some();
	else if (what < 8)
		post_some();
	else if (what < 12)
		feed();
	else if (what < 14)
		drain();
	else if (what < 18)
		collect(what % RING_COUNT);
	else if (worker_step(m.worker) < 0)
		model_fail("the worker cannot go on");
	if (!draw(100))
		interrupt();
}

/* Nothing comes twice after the last packet. */
static void settle(void)
{
	struct ring_status status;

	while (worker_step(m.worker) > 0)
		;
	drain();
	for (int ring = 0; ring < RING_COUNT; ring++) {
		collect(ring);
		worker_read_ring(m.worker, ring, &status);
		if (status.state != RING_RUNNING)
			model_fail("a ring does not run any more");
	}
}

static void choose_features(void)
{
	static const uint32_t features[] = {RING_EVENT_IDX, RING_INDIRECT,
					    RING_MRG_RXBUF, RING_IN_ORDER};

	m.flags = m.seed % 2 ? RING_PACKED : 0;
	for (size_t i = 0; i < sizeof(features) / sizeof(*features); i++)
		m.flags |= draw(2) ? features[i] : 0;
	m.mergeable = m.flags & RING_MRG_RXBUF;
	m.indirect = m.flags & RING_INDIRECT;
	m.hdr_len = m.mergeable || draw(2) ? 12 : 10;
}

static void choose_ring(uint16_t *num)
{
	static const uint16_t starts[] = {0, UINT16_MAX - 2, 12345};

	if (m.flags & RING_PACKED) {
		*num = draw(2) ? draw_from(1, 16) : draw_from(1, MODEL_SIZE);
		m.start = draw(*num) | (draw(2) ? PACKED_WRAP : 0);
	} else {
		*num = 1 << draw_from(1, 10);
		m.start = starts[draw(3)];
	}
}

static void open_end(int ring, uint16_t num)
{
	struct end *e = &m.end[ring];

	memset(e, 0, sizeof(*e));
	e->d.memory = m.memory;
	e->d.num = num;
	e->d.packed = m.flags & RING_PACKED;
	e->d.event_idx = m.flags & RING_EVENT_IDX;
	e->d.in_order = m.flags & RING_IN_ORDER && ring == RING_TX;
	e->d.writable = ring == RING_RX;
	driver_init(&e->d, ring * driver_bytes(num), m.start);
	e->n_slots = num < SLOTS ? num : SLOTS;
	for (uint32_t i = 0; i < e->n_slots; i++)
		e->slot[i] = RINGS + (ring * SLOTS + i) * STRIDE;
	e->kick_fd = eventfd(0, EFD_NONBLOCK);
	e->call_fd = eventfd(0, EFD_NONBLOCK);
	/* Few buffers must take the longest packet, or it would be dropped. */
	m.least = e->n_slots < 64 || !m.mergeable ? MODEL_SLOT : 128;
	start(ring, m.start);
}

static void open_model(void)
{
	struct mem_region regions[] = {
		{MODEL_GUEST, BORDER, (uintptr_t)m.memory},
		{MODEL_GUEST + BORDER, MEMORY - BORDER,
		 (uintptr_t)m.memory + BORDER},
	};
	struct worker_conf conf = {
		.events_fd = -1,
		.name = "model",
		.manual = 1,
		.io_uring = draw(2),
		.poll_min_ns = 1,
		.poll_max_ns = 1,
		.hold_ns = 100ULL * 1000000000,
	};
	uint16_t num;
	int fds[2];

	m.lost = m.part_len = m.parts = m.missing = 0;
	memset(m.memory, 0, MEMORY);
	choose_features();
	choose_ring(&num);
	if (socketpair(AF_UNIX, SOCK_SEQPACKET | SOCK_NONBLOCK, 0, fds))
		model_fail("no sockets");
	m.tap = fds[0];
	m.far = fds[1];
	conf.tap_fd = m.tap;
	if (worker_create(&conf, &m.worker) ||
	    worker_set_memory(m.worker, regions, 2))
		model_fail("no worker");
	for (int ring = 0; ring < RING_COUNT; ring++)
		open_end(ring, num);
}

static void close_model(void)
{
	if (worker_destroy(m.worker, 1000))
		model_fail("the worker does not end");
	for (int ring = 0; ring < RING_COUNT; ring++) {
		close(m.end[ring].kick_fd);
		close(m.end[ring].call_fd);
	}
	close(m.tap);
	close(m.far);
}

static uint64_t run(unsigned long seed)
{
	uint64_t left = (uint64_t)ROUNDS * m.packets;

	m.seed = seed;
	m.x = (seed + 1) * 0x9e3779b97f4a7c15;
	open_model();
	for (; !done(); left--) {
		if (!left)
			model_fail("not all packets come");
		act();
	}
	m.lost += unseen();
	settle();
	close_model();
	return 2ULL * m.packets;
}

int main(int argc, char **argv)
{
	unsigned long first, count;
	uint64_t packets = 0, lost = 0;

	if (argc != 4) {
		fprintf(stderr, "usage: model FIRST COUNT PACKETS\n");
		return 1;
	}
	first = strtoul(argv[1], NULL, 10);
	count = strtoul(argv[2], NULL, 10);
	m.packets = strtoul(argv[3], NULL, 10);
	for (int i = 0; i < PATTERN + LONGEST; i++)
		pattern[i] = i % PATTERN;
	m.memory = mmap(NULL, MEMORY, PROT_READ | PROT_WRITE,
			MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
	if (m.memory == MAP_FAILED)
		model_fail("no memory");
	for (unsigned long seed = first; seed < first + count; seed++) {
		packets += run(seed);
		lost += m.lost;
	}
	printf("%llu %llu %llu\n", (unsigned long long)packets,
	       (unsigned long long)lost, (unsigned long long)m.stops);
	return 0;
}

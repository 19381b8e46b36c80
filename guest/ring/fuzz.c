// SPDX-License-Identifier: Apache-2.0
/*
 * A fuzzer: the ring code with a master that does what the input says.
 *
 * An input is a small program: it writes descriptors, indices and raw bytes,
 * lets the queues run, makes the TAP fail, and changes the rings while they
 * run: in the middle of a packet, before a sleep, and after any load from the
 * master's memory (fuzz_barrier.h), so between a check and the use of what was
 * checked.  Any input must end, touch nothing outside the regions, and leave
 * each queue running, broken or fenced with a reason.
 *
 * With libFuzzer:
 *	clang -fsanitize=fuzzer,address,undefined -D_GNU_SOURCE -std=gnu11 \
 *		-include fuzz_barrier.h fuzz.c mem.c vq.c split.c \
 *		net.c rx.c segment.c tx.c
 * Without it: compile fuzz_main.c too.  tap.c is left out: the functions in its
 * place check what a kernel would silently overwrite.
 */
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/eventfd.h>
#include <unistd.h>
#include "rx.h"
#include "tap.h"
#include "tx.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

enum {
	FUZZ_REGIONS = 4,
	FUZZ_STEPS = 2000,
	FUZZ_RING = 0x1000, /* guest address of the rings */
	FUZZ_TX = 0x800 /* the transmit ring's, from there */
};

/* The second and the third lie side by side, for the master. */
static const struct mem_region fuzz_layout[FUZZ_REGIONS] = {
	{FUZZ_RING, 0x1000, 0},
	{0x10000, 0x1000, 0},
	{0x11000, 0x1000, 0},
	{UINT64_MAX - 0x1ffff, 0x20000, 0},
};

struct fuzz {
	const uint8_t *data;
	size_t left;
	struct mem mem;
	struct ring_conf conf[RING_COUNT];
	uint32_t doorbell;
	struct ring_meta meta;
	struct tx tx;
	struct rx rx;
	bool dead[RING_COUNT];
	uint32_t interrupt;
	uint8_t error; /* of the TAP's next call */
	uint8_t scribbles; /* changes during it */
	uint8_t loads; /* so many more, then the master acts; 0: never */
	bool meddled; /* it has acted after a load */
	uint32_t packet; /* length of the TAP's next packet */
	uint32_t burst; /* packets of that length behind it */
	int call_fd; /* eventfd, or -1 */
};

/* One input at a time; the TAP and the loads have no other way to it. */
static struct fuzz *fuzz_now;

static uint8_t fuzz_byte(struct fuzz *f)
{
	if (!f->left)
		return 0;
	f->left--;
	return *f->data++;
}

static uint16_t fuzz_word(struct fuzz *f)
{
	uint16_t high = fuzz_byte(f);

	return high << 8 | fuzz_byte(f);
}

static void fuzz_check(bool ok, const char *what)
{
	if (ok)
		return;
	fprintf(stderr, "fuzz: %s\n", what);
	abort();
}

static uint8_t *fuzz_ring(struct fuzz *f, int ring)
{
	return (uint8_t *)mem_at(&f->mem, FUZZ_RING, 0x1000) +
	       (ring == RING_TX ? FUZZ_TX : 0);
}

static struct net_queue *fuzz_queue(struct fuzz *f, int ring)
{
	return ring == RING_RX ? &f->rx.q : &f->tx.q;
}

/* An address; many are next to the start or the end of a region. */
static uint64_t fuzz_addr(struct fuzz *f)
{
	uint8_t pick = fuzz_byte(f);
	const struct mem_region *r = &fuzz_layout[pick % FUZZ_REGIONS];

	switch (pick >> 2 & 3) {
	case 0:
		return r->guest_addr + fuzz_byte(f) * 16;
	case 1:
		return r->guest_addr + r->size - fuzz_byte(f);
	case 2:
		return r->guest_addr + fuzz_word(f) % r->size;
	default:
		return (uint64_t)fuzz_word(f) << 48 | fuzz_word(f);
	}
}

static uint32_t fuzz_len(struct fuzz *f)
{
	uint8_t pick = fuzz_byte(f);

	if (pick < 0x40)
		return pick;
	if (pick < 0x80)
		return (pick & 0xf) * 16;
	if (pick < 0xfe)
		return fuzz_word(f);
	return (uint32_t)fuzz_word(f) << 16 | fuzz_word(f);
}

static void fuzz_put_desc(struct fuzz *f, uint8_t *at)
{
	uint64_t addr = fuzz_addr(f);
	uint32_t len = fuzz_len(f);
	uint16_t word[2];

	word[0] = fuzz_byte(f) & 7;
	word[1] = fuzz_byte(f) % 80;
	memcpy(at, &addr, sizeof(addr));
	memcpy(at + 8, &len, sizeof(len));
	memcpy(at + 12, word, sizeof(word));
}

static void fuzz_put_word(uint8_t *at, uint16_t value)
{
	memcpy(at, &value, sizeof(value));
}

static uint16_t fuzz_get_word(const uint8_t *at)
{
	uint16_t value;

	memcpy(&value, at, sizeof(value));
	return value;
}

/* Where the parts of a ring are, from its start. */
static uint32_t fuzz_avail(const struct fuzz *f)
{
	return 16 * f->conf[0].size;
}

static uint32_t fuzz_used(const struct fuzz *f)
{
	return (fuzz_avail(f) + 6 + 2 * f->conf[0].size + 3) & ~3U;
}

/* Make a chain available, as a driver does. */
static void fuzz_offer(struct fuzz *f, int ring, uint16_t head)
{
	uint8_t *avail = fuzz_ring(f, ring) + fuzz_avail(f);
	uint16_t idx = fuzz_get_word(avail + 2);
	uint16_t slot = idx & (f->conf[0].size - 1);

	fuzz_put_word(avail + 4 + 2 * slot, head);
	fuzz_put_word(avail + 2, idx + 1);
}

static void fuzz_scribble(struct fuzz *f)
{
	uint8_t what = fuzz_byte(f);
	uint8_t *ring = fuzz_ring(f, what & 1);
	uint32_t num = f->conf[0].size;

	switch (what >> 1 & 7) {
	case 0:
	case 1:
	case 2:
		fuzz_put_desc(f, ring + 16 * (fuzz_byte(f) % num));
		break;
	case 3: /* tables are at the start of the second region */
		fuzz_put_desc(f, (uint8_t *)mem_at(&f->mem, 0x10000, 0x1000) +
					 16 * (fuzz_byte(f) % 64));
		break;
	case 4:
	case 5:
		fuzz_offer(f, what & 1, fuzz_byte(f) % (num + 1));
		break;
	case 6:
		fuzz_put_word(ring + 2 * (fuzz_word(f) % (FUZZ_TX / 2)),
			      fuzz_word(f));
		break;
	default:
		if (what == 0xff)
			f->meta.session++;
		fuzz_put_word(ring + fuzz_avail(f) + (what >> 4 & 2),
			      fuzz_byte(f));
	}
}

/* Most often the master changes the very value that was just read. */
static void fuzz_meddle(struct fuzz *f, const uint8_t *p, size_t size)
{
	uint8_t what = fuzz_byte(f);

	f->meddled = true;
	if (what < 0x40) {
		fuzz_scribble(f);
		return;
	}
	for (uint32_t i = 0; i < f->mem.n; i++) {
		uint64_t host = f->mem.region[i].host_addr;

		if ((uintptr_t)p - host >= f->mem.region[i].size)
			continue;
		memset((uint8_t *)(uintptr_t)p + what % size, fuzz_byte(f),
		       1 + (what >> 4) % (size - what % size));
	}
}

/**
 * fuzz_loaded() - Let the master act after a load
 * @p:		What was loaded, in its memory or not
 * @size:	Its size
 */
void fuzz_loaded(const void *p, size_t size)
{
	struct fuzz *f = fuzz_now;

	if (f->loads && !--f->loads)
		fuzz_meddle(f, p, size);
}

static void fuzz_put(uint8_t *at, uint64_t addr, uint32_t len, uint16_t flags,
		     uint16_t next)
{
	memcpy(at, &addr, sizeof(addr));
	memcpy(at + 8, &len, sizeof(len));
	fuzz_put_word(at + 12, flags);
	fuzz_put_word(at + 14, next);
}

/* Offer a correct chain: one buffer, or a table of many small ones. */
static void fuzz_good(struct fuzz *f)
{
	const struct mem_region *big = &fuzz_layout[FUZZ_REGIONS - 1];
	uint8_t what = fuzz_byte(f);
	uint16_t write = what & 1 ? 0 : 2;
	uint16_t slot = fuzz_byte(f) % f->conf[0].size;
	uint8_t *at = fuzz_ring(f, what & 1) + 16 * slot;
	uint32_t len = fuzz_len(f) & 0x3ff, n = len ? len : 1024;
	uint8_t *table = mem_at(&f->mem, big->guest_addr, 16 * n);

	if (what & 2) {
		fuzz_put(at, big->guest_addr + 0x8000, len, write, 0);
	} else {
		fuzz_put(at, big->guest_addr, 16 * n, 4, 0);
		for (uint32_t i = 0; i < n; i++)
			fuzz_put(table + 16 * i, big->guest_addr + 0x8000 + i,
				 what >> 6, i + 1 < n ? write | 1 : write,
				 i + 1);
	}
	fuzz_offer(f, what & 1, slot);
}

static bool fuzz_inside(const struct fuzz *f, const uint8_t *p, size_t len)
{
	for (uint32_t i = 0; i < f->mem.n; i++) {
		const struct mem_region *r = &f->mem.region[i];
		uint64_t offset = (uintptr_t)p - r->host_addr;

		if (offset < r->size && len <= r->size - offset)
			return true;
	}
	return p == f->rx.spill && len == sizeof(f->rx.spill);
}

static ssize_t fuzz_tap(const struct iovec *iov, int n, ssize_t limit,
			bool fill)
{
	struct fuzz *f = fuzz_now;
	ssize_t len = 0;

	fuzz_check(n >= 0 && n <= 1024, "more iovecs than a system call takes");
	for (int i = 0; i < n; i++) {
		size_t part = iov[i].iov_len;

		fuzz_check(fuzz_inside(f, iov[i].iov_base, part),
			   "iovec outside the regions");
		if (part > (size_t)(limit - len))
			part = limit - len;
		if (fill)
			memset(iov[i].iov_base, 0xa5, part);
		len += part;
	}
	for (; f->scribbles; f->scribbles--)
		fuzz_scribble(f);
	return len;
}

static int fuzz_tap_error(void)
{
	static const int errors[] = {EAGAIN, EINVAL, ENOMEM, EIO, EFAULT};
	struct fuzz *f = fuzz_now;
	uint8_t pick = f->error;

	f->error = 0;
	return pick ? -errors[pick % 5] : 0;
}

ssize_t tap_read(int fd, const struct iovec *iov, int n)
{
	struct fuzz *f = fuzz_now;
	uint32_t packet = f->packet;
	int error = fuzz_tap_error();

	(void)fd;
	if (error)
		return error;
	if (!packet)
		return -EAGAIN;
	if (f->burst)
		f->burst--;
	else
		f->packet = packet > 3000 ? packet - 1000 : 0;
	return fuzz_tap(iov, n, packet, true);
}

ssize_t tap_write(int fd, const struct iovec *iov, int n)
{
	int error = fuzz_tap_error();

	(void)fd;
	return error ? error : fuzz_tap(iov, n, RING_MAX_PACKET + 12, false);
}

static void fuzz_after_pass(struct fuzz *f, int ring, int r)
{
	const struct vq *vq = &fuzz_queue(f, ring)->vq;

	fuzz_check(r <= NET_BATCH, "more than a batch");
	fuzz_check((uint16_t)(vq->last_avail - vq->used) <= vq->num,
		   "more chains in our hands than the ring has");
	fuzz_check(r < 0 || !vq->n_done, "completed, and not in the used ring");
	fuzz_check((r < 0) == (vq->fault != RING_FAULT_NONE),
		   "a fault without a reason");
	f->dead[ring] = r < 0;
}

/* Enable kicks; the master may offer a chain at the last moment before. */
static void fuzz_arm(struct fuzz *f, int ring)
{
	const uint8_t *avail = fuzz_ring(f, ring) + fuzz_avail(f);
	struct vq *vq = &fuzz_queue(f, ring)->vq;
	int r;

	for (; f->scribbles; f->scribbles--)
		fuzz_scribble(f);
	f->meddled = false;
	r = vq_enable_kicks(vq);
	f->dead[ring] = r < 0;
	/* A chain offered after the last look is announced by a kick. */
	fuzz_check(r < 0 || f->meddled ||
			   r == (fuzz_get_word(avail + 2) != vq->last_avail),
		   "asleep with work to do");
}

static void fuzz_run(struct fuzz *f, int ring)
{
	int r;

	if (f->dead[ring])
		return;
	r = ring == RING_RX ? rx_pass(&f->rx) : tx_pass(&f->tx);
	fuzz_after_pass(f, ring, r);
	if (!f->dead[ring] && fuzz_queue(f, ring)->wait == NET_WAIT_KICK)
		fuzz_arm(f, ring);
}

/* Fill the receive ring with buffers of 512 bytes, or post tables of 700. */
static void fuzz_post(struct fuzz *f, bool tables)
{
	const struct mem_region *big = &fuzz_layout[FUZZ_REGIONS - 1];
	const uint8_t *idx = fuzz_ring(f, RING_RX) + fuzz_avail(f) + 2;
	uint8_t *table = mem_at(&f->mem, big->guest_addr, 16 * 700);
	uint32_t num = f->conf[0].size, n = tables && num > 8 ? 8 : num;

	for (uint16_t i = 0; tables && i < 700; i++)
		fuzz_put(table + 16 * i, big->guest_addr + 0x8000 + i, 1,
			 i < 699 ? 3 : 2, i + 1);
	for (uint32_t i = 0; i < n; i++) {
		uint16_t avail = fuzz_get_word(idx), slot = avail & (num - 1);
		uint8_t *at = fuzz_ring(f, RING_RX) + 16 * slot;

		if ((uint16_t)(avail - f->rx.q.vq.used) >= num)
			break;
		if (tables)
			fuzz_put(at, big->guest_addr, 16 * 700, 4, 0);
		else
			fuzz_put(at, big->guest_addr + 0x8000, 512, 2, 0);
		fuzz_offer(f, RING_RX, slot);
	}
}

/* Many packets for many buffers: batches, and what rx.c learns from them. */
static void fuzz_burst(struct fuzz *f)
{
	uint8_t what = fuzz_byte(f);
	bool tables = what & 8;
	int rounds = what >> 4;

	if (tables) /* slow, and the first round has it all */
		rounds %= 2;
	for (; rounds && !f->dead[RING_RX]; rounds--) {
		fuzz_post(f, tables);
		f->packet = 64 + (what & 7) * 128;
		f->burst = f->conf[0].size;
		fuzz_run(f, RING_RX);
	}
	f->burst = 0;
}

/* Start a ring again, as a successor does: at the used index, and empty. */
static void fuzz_start(struct fuzz *f, int ring)
{
	uint8_t *at = fuzz_ring(f, ring);
	struct net_queue *q = fuzz_queue(f, ring);
	uint16_t idx = fuzz_get_word(at + fuzz_used(f) + 2);

	fuzz_put_word(at + fuzz_avail(f) + 2, idx);
	f->conf[ring].base = idx;
	f->conf[ring].session = f->meta.session;
	if (ring == RING_RX)
		rx_stop(&f->rx);
	f->loads = 0; /* a master that acts now may well prevent the start */
	fuzz_check(!net_init(q, &f->mem, &f->conf[ring], ring == RING_RX),
		   "a ring that is right does not start");
	if (ring == RING_RX)
		rx_start(&f->rx);
	else
		tx_start(&f->tx);
	q->interrupt = &f->interrupt;
	f->dead[ring] = false;
}

static void fuzz_init(struct fuzz *f)
{
	struct mem_region region[FUZZ_REGIONS];
	uint8_t pick = fuzz_byte(f);
	uint8_t how = fuzz_byte(f);
	uint16_t base = how & 1 ? UINT16_MAX - 1 : 0;

	f->call_fd = how & 2 ? eventfd(0, EFD_NONBLOCK) : -1;
	for (int i = 0; i < FUZZ_REGIONS; i++) {
		region[i] = fuzz_layout[i];
		region[i].host_addr =
			(uintptr_t)aligned_alloc(4096, region[i].size);
		memset((void *)(uintptr_t)region[i].host_addr, 0,
		       region[i].size);
	}
	fuzz_check(!mem_set(&f->mem, region, FUZZ_REGIONS), "mem_set");
	for (int i = 0; i < RING_COUNT; i++) {
		struct ring_conf *conf = &f->conf[i];

		conf->size = 1 << (pick >> 4) % 7;
		conf->flags = pick & 7;
		conf->flags |= how & 4 ? RING_SEGMENT_UDP : 0;
		conf->hdr_len = pick & (RING_MRG_RXBUF | 8) ? 12 : 10;
		conf->max_packet = RING_MAX_PACKET;
		conf->call_fd = f->call_fd;
		conf->call_addr = how & 2 ? 0 : (uintptr_t)&f->doorbell;
		conf->meta_addr = (uintptr_t)&f->meta;
	}
	for (int i = 0; i < RING_COUNT; i++) {
		struct ring_conf *conf = &f->conf[i];

		conf->desc = FUZZ_RING + (i == RING_TX ? FUZZ_TX : 0);
		conf->driver = conf->desc + fuzz_avail(f);
		conf->device = conf->desc + fuzz_used(f);
		fuzz_put_word(fuzz_ring(f, i) + fuzz_used(f) + 2, base);
		fuzz_start(f, i);
	}
}

static void fuzz_step(struct fuzz *f)
{
	uint8_t op = fuzz_byte(f);

	switch (op & 15) {
	case 0:
	case 1:
		fuzz_run(f, op & 1);
		break;
	case 2:
		f->packet = fuzz_len(f) % (2 * RX_SPILL);
		fuzz_run(f, RING_RX);
		break;
	case 3:
		f->error = fuzz_byte(f);
		break;
	case 4:
		f->scribbles = fuzz_byte(f) % 8;
		break;
	case 5:
	case 6:
		if (f->dead[op & 1])
			fuzz_start(f, op & 1);
		break;
	case 7:
	case 8:
	case 9:
		fuzz_good(f);
		break;
	case 11:
		f->loads = fuzz_byte(f) % 32;
		break;
	case 12:
		fuzz_burst(f);
		break;
	case 10: /* what is held has waited long enough, or may wait */
		f->rx.hold_ns = op & 16 ? 0 : UINT32_MAX;
		f->rx.held_until = op & 16 ? 1 : 0;
		break;
	default:
		fuzz_scribble(f);
	}
}

/* Each call by eventfd has arrived, and no other. */
static void fuzz_check_calls(struct fuzz *f)
{
	uint64_t count = 0;

	if (f->call_fd < 0)
		return;
	if (read(f->call_fd, &count, sizeof(count)) < 0)
		count = 0;
	fuzz_check(count == f->rx.q.stats.calls + f->tx.q.stats.calls,
		   "calls that the eventfd has not got");
	close(f->call_fd);
}

/**
 * LLVMFuzzerTestOneInput() - Run one input
 * @data:	Input
 * @size:	Its length
 *
 * Return: 0
 */
int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
	struct fuzz *f = calloc(1, sizeof(*f));

	if (!f)
		abort();
	f->data = data;
	f->left = size;
	fuzz_now = f;
	fuzz_init(f);
	for (int i = 0; i < FUZZ_STEPS && f->left; i++)
		fuzz_step(f);
	fuzz_run(f, RING_RX);
	fuzz_run(f, RING_TX);
	fuzz_check_calls(f);
	for (uint32_t i = 0; i < f->mem.n; i++)
		free((void *)(uintptr_t)f->mem.region[i].host_addr);
	free(f);
	return 0;
}

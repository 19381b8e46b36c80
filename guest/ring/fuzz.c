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
 * tests/fuzz/build.py builds it, with libFuzzer and fuzz_mutate.c, or with
 * fuzz_main.c.  tap.c and uring.c are left out: the functions in their place check
 * what a kernel would silently overwrite.
 */
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/eventfd.h>
#include <unistd.h>
#include "fuzz.h"
#include "tap.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

/* One input at a time; the TAP and the loads have no other way to it. */
static struct fuzz *fuzz_now;

static void fuzz_check(bool ok, const char *what)
{
	if (ok)
		return;
	fprintf(stderr, "fuzz: %s\n", what);
	abort();
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

static bool fuzz_inside(const struct fuzz *f, const uint8_t *p, size_t len)
{
	for (uint32_t i = 0; i < f->mem.n; i++) {
		const struct mem_region *r = &f->mem.region[i];
		uint64_t offset = (uintptr_t)p - r->host_addr;

		if (offset < r->size && len <= r->size - offset)
			return true;
	}
	/* Or in our own: what a read does not fit in, or segments' headers. */
	return (p == f->rx.spill && len == sizeof(f->rx.spill)) ||
	       (p == f->tx.segments.head && len <= sizeof(f->tx.segments.head));
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

void uring_start(struct uring *u, int fd)
{
	(void)u;
	(void)fd;
}

/* The kernel takes some of a batch; what is behind a full TAP is not tried. */
void uring_write(struct uring *u, int fd, struct tap_packet *packet, uint32_t n)
{
	uint32_t end = fuzz_now->left % (n + 1);

	fuzz_check(uring_ready(u) && n <= URING_PACKETS, "no room for a batch");
	for (uint32_t i = 0; i < end; i++) {
		if (!packet[i].n)
			continue;
		packet[i].result = tap_write(fd, packet[i].iov, packet[i].n);
		if (packet[i].result == -EAGAIN)
			return;
	}
}

static void fuzz_after_pass(struct fuzz *f, int ring, int r)
{
	const struct vq *vq = &fuzz_queue(f, ring)->vq;

	fuzz_check(r <= NET_BATCH, "more than a batch");
	fuzz_check((vq->packed
			    ? vq->taken
			    : (uint16_t)(vq->last_avail - vq->used)) <= vq->num,
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
			   r == (f->packed ? vq_has_more(vq)
					   : fuzz_get_word(avail + 2) !=
						     vq->last_avail),
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
		f->burst = f->conf[0].size < 2048 ? f->conf[0].size : 2048;
		fuzz_run(f, RING_RX);
	}
	f->burst = 0;
}

static void fuzz_started(struct fuzz *f, int ring)
{
	if (ring == RING_RX)
		rx_start(&f->rx);
	else
		tx_start(&f->tx);
	fuzz_queue(f, ring)->interrupt = &f->interrupt;
	f->dead[ring] = false;
}

/* Start a ring again, as a successor does: where it stood, and empty. */
static void fuzz_start(struct fuzz *f, int ring)
{
	struct net_queue *q = fuzz_queue(f, ring);

	f->conf[ring].base = fuzz_empty(f, ring);
	f->conf[ring].session = f->meta.session;
	if (ring == RING_RX)
		rx_stop(&f->rx);
	f->loads = 0; /* a master that acts now may well prevent the start */
	fuzz_check(!net_init(q, &f->mem, &f->conf[ring], ring == RING_RX),
		   "a ring that is right does not start");
	fuzz_started(f, ring);
}

/*
 * Start a ring where it stood with all that the master has written into it; or
 * where the metadata, which the fuzzer writes here too, says that it stood.
 */
static void fuzz_resume(struct fuzz *f, int ring, bool position)
{
	struct net_queue *q = fuzz_queue(f, ring);
	uint16_t base = q->vq.used;

	if (ring == RING_RX)
		rx_stop(&f->rx);
	if (position) {
		base = fuzz_word(f);
		f->position[ring].position = base | (uint32_t)fuzz_word(f)
							    << 16;
		f->position[ring].undo = (uint64_t)(fuzz_byte(f) & 3) << 32 |
					 fuzz_len(f);
	}
	f->conf[ring].base = base;
	f->conf[ring].session = f->meta.session;
	f->dead[ring] = true;
	if (!net_init(q, &f->mem, &f->conf[ring], ring == RING_RX))
		fuzz_started(f, ring);
}

/* Sizes of packed rings are any; most inputs have small rings, which fill up. */
static uint32_t fuzz_size(bool packed, uint8_t pick, uint8_t how)
{
	if (!(how & 32))
		return packed ? 1U + 4 * pick : 1U << pick % 7;
	return (1U << pick) - (packed && how & 64 && pick ? 1 : 0);
}

static void fuzz_init(struct fuzz *f)
{
	uint8_t pick = fuzz_byte(f);
	uint8_t how = fuzz_byte(f);
	uint16_t base = how & 1 ? UINT16_MAX - 1 : 0;

	f->packed = how & 8;
	f->call_fd = how & 2 ? eventfd(0, EFD_NONBLOCK) : -1;
	f->tx.uring.open = __builtin_parity(how); /* each bit has its meaning */
	for (int i = 0; i < RING_COUNT; i++) {
		struct ring_conf *conf = &f->conf[i];

		conf->size = fuzz_size(f->packed, pick >> 4, how);
		conf->flags = (pick & 7) | (f->packed ? RING_PACKED : 0) |
			      (how & 16 ? RING_IN_ORDER : 0);
		conf->flags |= how & 4 ? RING_SEGMENT_UDP : 0;
		conf->position_addr = (uintptr_t)&f->position[i];
		conf->origin = 1;
		conf->hdr_len = pick & (RING_MRG_RXBUF | 8) ? 12 : 10;
		conf->max_packet = how & 128 ? 1518 : RING_MAX_PACKET;
		conf->call_fd = f->call_fd;
		conf->call_addr = how & 2 ? 0 : (uintptr_t)&f->doorbell;
		conf->meta_addr = (uintptr_t)&f->meta;
	}
	fuzz_layout(f);
	fuzz_check(!mem_set(&f->mem, f->layout, FUZZ_REGIONS), "mem_set");
	for (int i = 0; i < RING_COUNT; i++) {
		struct ring_conf *conf = &f->conf[i];

		conf->desc = f->layout[0].guest_addr +
			     (i == RING_TX ? f->ring_len : 0);
		conf->driver = conf->desc + fuzz_avail(f);
		conf->device = conf->desc + fuzz_used(f);
		f->next[i] = how & 1 ? conf->size - 1 : 0x8000;
		if (!f->packed)
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
		if (op & 16)
			fuzz_resume(f, op & 1, op & 32);
		else if (f->dead[op & 1])
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
	case 14:
		if (op & 16)
			fuzz_udp(f);
		else
			fuzz_fill(f);
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
	static struct fuzz state; /* allocating it takes longer than an input */
	struct fuzz *f = &state;

	memset(f, 0, sizeof(*f));
	f->data = data;
	f->left = size;
	fuzz_now = f;
	fuzz_init(f);
	for (int i = 0; i < FUZZ_STEPS && f->left; i++)
		fuzz_step(f);
	fuzz_run(f, RING_RX);
	fuzz_run(f, RING_TX);
	fuzz_check_calls(f);
	if (f->ring_len > FUZZ_RING_LEN)
		free((void *)(uintptr_t)f->layout[0].host_addr);
	return 0;
}

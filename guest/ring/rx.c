// SPDX-License-Identifier: Apache-2.0
/*
 * From the TAP to the master's receive queue: one readv() per packet.
 *
 * A TAP does not say how long its next packet is.  So each read is offered the
 * master's buffers, and behind them the spill, which is private memory: a
 * packet that is longer than the buffers is never cut.  Its tail is copied from
 * the spill as soon as the master gives more buffers.  Until then the packet is
 * held.  It is dropped when we hold all chains of the ring and they do not
 * suffice, or when hold_ns has passed: a driver may refill its ring only when
 * half of it is used, and would otherwise wait for us while we wait for it.
 *
 * A read is offered buffers for `want` bytes, the longest of the last RX_WINDOW
 * packets.  64 KiB in buffers of 1.5 KiB are 44 iovecs, which cost the kernel a
 * tenth of the time of a small packet.  After a packet that was longer than
 * `want`, buffers for the longest possible packet are offered again.
 */
#include <assert.h>
#include <endian.h>
#include <errno.h>
#include <string.h>
#include "rx.h"
#include "tap.h"

static_assert(VQ_MAX_DONE >= NET_BATCH - 1 + RX_CHAINS,
	      "the chains of one packet fit behind an unflushed batch");
static_assert(RX_SPILL > RING_MAX_PACKET + NET_HDR_MRG_LEN,
	      "a packet that is too long is seen to be");
static_assert(RX_IOVS > 2 * VQ_CHAIN_IOVS,
	      "a chain, and the spill, behind a store which is not full");

/**
 * rx_start() - Begin with no chains and no packet; call it after net_init()
 * @rx:		Receive queue
 */
void rx_start(struct rx *rx)
{
	rx->starved = false;
	rx->held = 0;
	rx->held_until = 0;
	rx->want = rx->q.hdr_len + rx->q.max_packet;
	rx->longest = 0;
	rx->window = RX_WINDOW;
	rx->cap = 0;
	rx->first = 0;
	rx->n_chains = 0;
	rx->iov_first = 0;
	rx->iov_end = 0;
}

/**
 * rx_stop() - Drop the packet that is held, and forget the chains
 * @rx:		Receive queue
 *
 * The chains were not completed, so a successor finds them in the ring.
 */
void rx_stop(struct rx *rx)
{
	if (rx->held)
		RING_COUNT_ADD(rx->q.stats.drop_stop, 1);
	rx_start(rx);
}

static struct vq_chain *rx_chain(struct rx *rx, uint32_t i)
{
	return &rx->chain[(rx->first + i) % RX_CHAINS];
}

static uint32_t rx_iovs(const struct rx *rx)
{
	return rx->iov_end - rx->iov_first;
}

/* Make room for another chain, in one piece, and for the spill behind it. */
static void rx_make_room(struct rx *rx)
{
	uint32_t n = rx_iovs(rx);

	if (rx->iov_end + VQ_CHAIN_IOVS < RX_IOVS)
		return;
	memmove(rx->iov, rx->iov + rx->iov_first, n * sizeof(*rx->iov));
	rx->iov_first = 0;
	rx->iov_end = n;
}

/* A read takes VQ_CHAIN_IOVS vectors at most: more would be of no use. */
static bool rx_full(const struct rx *rx)
{
	return rx->n_chains == RX_CHAINS || rx_iovs(rx) >= VQ_CHAIN_IOVS;
}

/* Take chains until they hold @want bytes, or there are no more. */
static int rx_fill(struct rx *rx, uint64_t want)
{
	struct vq_chain *chain;
	int r;

	while (rx->cap < want && !rx_full(rx)) {
		rx_make_room(rx);
		chain = rx_chain(rx, rx->n_chains);
		/* There is room for the VQ_CHAIN_IOVS vectors it may fill. */
		r = vq_next(&rx->q.vq, rx->iov + rx->iov_end, chain);
		if (r)
			return r == -EAGAIN ? 0 : r;
		rx->iov_end += chain->n_iov;
		rx->cap += chain->len;
		rx->n_chains++;
	}
	return 0;
}

/* Complete the first chain with @len bytes in it; @more of the packet follows. */
static void rx_pop(struct rx *rx, uint32_t len, bool more)
{
	const struct vq_chain *chain = rx_chain(rx, 0);

	vq_complete(&rx->q.vq, chain, len, more);
	rx->cap -= chain->len;
	rx->iov_first += chain->n_iov;
	rx->first++;
	rx->n_chains--;
}

/* Copy to an offset in the buffers, which must be long enough. */
static void rx_put(const struct iovec *iov, uint64_t offset,
		   const uint8_t *data, size_t len)
{
	size_t part;

	for (; len; iov++) {
		if (offset >= iov->iov_len) {
			offset -= iov->iov_len;
			continue;
		}
		part = iov->iov_len - offset;
		if (part > len)
			part = len;
		memcpy((uint8_t *)iov->iov_base + offset, data, part);
		data += part;
		len -= part;
		offset = 0;
	}
}

/* Choose the chains that the next read may fill: one, or enough for `want`. */
static void rx_gather(struct rx *rx)
{
	const struct vq_chain *chain = rx_chain(rx, 0);
	uint32_t n = 1;

	rx->read_iov = chain->n_iov;
	rx->read_cap = chain->len;
	if (!rx->q.mergeable)
		return;
	for (; n < rx->n_chains && rx->read_cap < rx->want; n++) {
		chain = rx_chain(rx, n);
		if (rx->read_iov + chain->n_iov > VQ_CHAIN_IOVS)
			break;
		rx->read_iov += chain->n_iov;
		rx->read_cap += chain->len;
	}
}

/* Learn from a packet how much to offer to the next reads. */
static void rx_learn(struct rx *rx)
{
	if (rx->longest < rx->held)
		rx->longest = rx->held;
	if (rx->held > rx->read_cap) {
		rx->want = rx->q.hdr_len + rx->q.max_packet;
		rx->window = RX_WINDOW;
	} else if (!--rx->window) {
		rx->want = rx->longest;
		rx->longest = 0;
		rx->window = RX_WINDOW;
	}
}

/* Read a packet; what the buffers cannot take goes into the spill. */
static ssize_t rx_read_spill(struct rx *rx)
{
	struct iovec *iov = rx->iov + rx->iov_first;
	struct iovec *end = &iov[rx->read_iov];
	struct iovec next = *end; /* may belong to a chain not offered now */
	ssize_t n;

	end->iov_base = rx->spill;
	end->iov_len = sizeof(rx->spill);
	n = tap_read(rx->q.tap_fd, iov, rx->read_iov + 1);
	*end = next;
	return n;
}

/* Decide what follows from an error of the TAP: wait, or end the ring. */
static int rx_error(struct net_queue *q, int error)
{
	switch (error) {
	case EAGAIN:
		return net_set_wait(q, NET_WAIT_TAP_IN);
	/* The next read would meet these again. */
	case EBADF:
	case EBADFD: /* the TAP was deleted */
	case EPIPE:
		return net_tap_fault(q, error);
	case ENOMEM: /* no room for the vectors in the kernel: the packet stays */
		break;
	default:
		/* EFAULT: the buffers; EINVAL: no net header can describe it. */
		RING_COUNT_ADD(q->stats.drop_read, 1);
	}
	return net_tap_failure(q, error);
}

static int rx_read(struct rx *rx)
{
	struct net_queue *q = &rx->q;
	ssize_t n = rx_read_spill(rx);

	if (n < 0)
		return rx_error(q, -n);
	q->failures = 0;
	if (n <= q->hdr_len)
		RING_COUNT_ADD(q->stats.drop_runt, 1);
	else if (n - q->hdr_len > q->max_packet)
		RING_COUNT_ADD(q->stats.drop_long, 1);
	else
		rx->held = n;
	if (rx->held)
		rx_learn(rx);
	return 0;
}

static int rx_starve(struct rx *rx)
{
	if (!rx->starved)
		RING_COUNT_ADD(rx->q.stats.no_buffers, 1);
	rx->starved = true;
	return net_set_wait(&rx->q, NET_WAIT_KICK);
}

/*
 * Check whether the held packet fits into the chains that we have or can take
 * now.  Returns 0; -EMSGSIZE: drop it; -EAGAIN: hold it; -EPROTO.
 */
static int rx_fits(struct rx *rx)
{
	uint64_t now;
	int r;

	if (!rx->q.mergeable)
		return rx_chain(rx, 0)->len >= rx->held ? 0 : -EMSGSIZE;
	r = rx_fill(rx, rx->held);
	if (r || rx->cap >= rx->held)
		return r;
	/* The master cannot add buffers before it gets some back. */
	if (rx_full(rx) || vq_all_taken(&rx->q.vq))
		return -EMSGSIZE;

	now = net_now();
	if (!rx->held_until)
		rx->held_until = now + rx->hold_ns;
	if (now >= rx->held_until)
		return -EMSGSIZE;
	return rx_starve(rx);
}

/* Copy the tail of the held packet, and complete its chains. */
static void rx_finish(struct rx *rx)
{
	const struct iovec *iov = rx->iov + rx->iov_first;
	uint32_t left = rx->held, n;
	uint16_t num_buffers = 0;

	if (left > rx->read_cap) {
		rx_put(iov + rx->read_iov, 0, rx->spill, left - rx->read_cap);
		RING_COUNT_ADD(rx->q.stats.spilled, 1);
	}
	while (left) {
		n = left;
		if (n > rx_chain(rx, 0)->len)
			n = rx_chain(rx, 0)->len;
		rx_pop(rx, n, left > n);
		left -= n;
		num_buffers++;
	}
	/* iov still points to the first buffer: rx_pop() only moves indices. */
	if (rx->q.hdr_len == NET_HDR_MRG_LEN) {
		num_buffers = htole16(num_buffers);
		rx_put(iov, NET_HDR_NUM_BUFFERS, (void *)&num_buffers,
		       sizeof(num_buffers));
	}
}

static int rx_deliver(struct rx *rx)
{
	int r = rx_fits(rx);

	if (r && r != -EMSGSIZE)
		return r;
	if (r) {
		RING_COUNT_ADD(rx->q.stats.drop_no_room, 1);
	} else {
		net_count_packet(&rx->q, rx->held);
		rx_finish(rx);
	}
	rx->held = 0;
	rx->held_until = 0;
	return 0;
}

/*
 * Make sure that the first chain can take a packet.  Give back chains that are
 * too short, and return 1 then, so that the pass flushes a full batch before
 * it goes on: vq->done has room for RX_CHAINS chains behind a batch, not more.
 */
static int rx_prepare(struct rx *rx)
{
	struct net_queue *q = &rx->q;
	uint64_t least = q->mergeable ? 1 : q->hdr_len;
	int r = rx_fill(rx, q->mergeable ? rx->want : 1);

	if (r)
		return r;
	if (!rx->n_chains)
		return rx_starve(rx);
	rx->starved = false;
	for (; rx->n_chains && rx_chain(rx, 0)->len < least; r = 1) {
		RING_COUNT_ADD(q->stats.bad_chains, 1);
		rx_pop(rx, 0, false);
	}
	return r;
}

static int rx_one(struct rx *rx)
{
	int r;

	if (!rx->held) {
		r = rx_prepare(rx);
		if (r)
			return r < 0 ? r : 0;
		rx_gather(rx);
		r = rx_read(rx);
		if (r)
			return r;
	}
	return rx->held ? rx_deliver(rx) : 0;
}

/**
 * rx_pass() - Deliver what the TAP has, up to a batch
 * @rx:		Receive queue
 *
 * Return: number of packets handled, or -errno: see net.h
 */
int rx_pass(struct rx *rx)
{
	struct net_queue *q = &rx->q;
	uint64_t end = q->stats.bytes + NET_BATCH_BYTES;
	int n = 0, r = net_begin_pass(q);

	if (!r && net_paused(q))
		return 0;
	q->wait = NET_WAIT_NOT;
	while (!r && n < NET_BATCH && net_goes_on(q, end)) {
		r = rx_one(rx);
		n += !r;
		/* A packet may have completed many chains: see VQ_MAX_DONE. */
		if (q->vq.n_done >= NET_BATCH && !r)
			r = net_flush(q);
		if (rx->one && !r)
			r = net_set_wait(q, NET_WAIT_TAP_IN);
	}
	return net_end_pass(q, r, n);
}

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

	/* The lines at the start are in the cache, those behind are not. */
	if (!rx->n_chains) {
		rx->first = 0;
		rx->iov_first = 0;
		rx->iov_end = 0;
	}
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

/*
 * Take several chains at once if they are simple and packets are short: before
 * long ones that takes longer than one by one.  There is room for the vectors
 * behind rx_make_room().  Returns their number.
 */
static unsigned int rx_take(struct rx *rx)
{
	struct vq_chain *chain = rx_chain(rx, rx->n_chains);
	/* Up to where the chains that are free are in one piece. */
	unsigned int n = &rx->chain[RX_CHAINS] - chain;

	if (rx->want > RX_SHORT)
		return 0;
	if (n > RX_CHAINS - rx->n_chains)
		n = RX_CHAINS - rx->n_chains;
	if (n > RX_TAKE)
		n = RX_TAKE;
	n = vq_take(&rx->q.vq, rx->iov + rx->iov_end, chain, n);
	for (unsigned int i = 0; i < n; i++)
		rx->cap += chain[i].len;
	rx->iov_end += n;
	rx->n_chains += n;
	return n;
}

/* Take chains until they hold @want bytes, or there are no more. */
static int rx_fill(struct rx *rx, uint64_t want)
{
	struct vq_chain *chain;
	int r;

	while (rx->cap < want && !rx_full(rx)) {
		rx_make_room(rx);
		if (rx_take(rx))
			continue;
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

/*
 * Learn from packets how much to offer to the next reads.  @longest is that of
 * @n packets, which all have the same window.
 */
static void rx_learn(struct rx *rx, uint32_t longest, uint32_t n)
{
	if (rx->longest < longest)
		rx->longest = longest;
	rx->window -= n;
	if (!rx->window) {
		rx->want = rx->longest;
		rx->longest = 0;
		rx->window = RX_WINDOW;
	}
}

/* Read a packet; what the buffers cannot take goes into the spill. */
static ssize_t rx_read_spill(struct rx *rx)
{
	const struct iovec spill = {rx->spill, sizeof(rx->spill)};
	struct iovec *iov = rx->iov + rx->iov_first;
	struct iovec *end = &iov[rx->read_iov];
	struct iovec next = *end; /* may belong to a chain not offered now */
	ssize_t n;

	*end = spill;
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

/* What follows from a read, which returned @n: a packet is held, or none. */
static int rx_received(struct rx *rx, ssize_t n)
{
	struct net_queue *q = &rx->q;

	if (n < 0)
		return rx_error(q, -n);
	q->failures = 0;
	if (n <= q->hdr_len)
		RING_COUNT_ADD(q->stats.drop_runt, 1);
	else if (n - q->hdr_len > q->max_packet)
		RING_COUNT_ADD(q->stats.drop_long, 1);
	else
		rx->held = n;
	if (rx->held > rx->read_cap) {
		rx->want = q->hdr_len + q->max_packet;
		rx->window = RX_WINDOW;
	} else if (rx->held) {
		rx_learn(rx, rx->held, 1);
	}
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

static void rx_put_num_buffers(const struct iovec *iov, uint16_t n)
{
	n = htole16(n);
	if (iov->iov_len >= NET_HDR_MRG_LEN)
		memcpy((uint8_t *)iov->iov_base + NET_HDR_NUM_BUFFERS, &n,
		       sizeof(n));
	else
		rx_put(iov, NET_HDR_NUM_BUFFERS, (void *)&n, sizeof(n));
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
	if (rx->q.hdr_len == NET_HDR_MRG_LEN)
		rx_put_num_buffers(iov, num_buffers);
}

static int rx_deliver(struct rx *rx)
{
	int r = rx_fits(rx);

	if (r && r != -EMSGSIZE)
		return r;
	if (r) {
		RING_COUNT_ADD(rx->q.stats.drop_no_room, 1);
	} else {
		/* rx_finish() forgets the chains, and leaves their vectors. */
		const struct iovec *iov = rx->iov + rx->iov_first;

		net_count_packet(&rx->q, rx->held);
		rx_finish(rx);
		if (rx->q.capture)
			capture_packet(rx->q.capture, RING_RX, rx->q.hdr_len,
				       iov, rx->held);
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
		r = rx_received(rx, rx_read_spill(rx));
		if (r)
			return r;
	}
	return rx->held ? rx_deliver(rx) : 0;
}

/* Packets that rx_read_burst() has read, each into a chain. */
struct rx_burst {
	uint32_t n;
	uint32_t longest; /* with its header, as are their bytes */
	uint64_t bytes;
	uint64_t cap; /* bytes that their chains could take */
};

/*
 * Read packets that are as long as usual, each into one chain of one vector.
 * Our own stores are few here, and what they change stays in registers: small
 * packets wait for the master's cache lines, and the processor has room for some
 * 60 stores that wait.
 *
 * Returns what a read has returned that is no such packet; 0 if there was none.
 */
static ssize_t rx_read_burst(struct rx *rx, uint64_t room, uint32_t max,
			     struct rx_burst *burst)
{
	struct net_queue *q = &rx->q;
	struct iovec iov[] = {{NULL, 0}, {rx->spill, sizeof(rx->spill)}};
	const uint32_t least = q->mergeable ? rx->want : q->hdr_len;

	while (burst->n < max && burst->bytes < room &&
	       !read_once(q->interrupt)) {
		const struct vq_chain *chain = rx_chain(rx, burst->n);
		ssize_t n;

		if (chain->n_iov != 1 || chain->len < least)
			break;
		/*
		 * Two stores, as the reader loads both parts: from one store of
		 * 16 bytes it would have to wait until that has left the queue.
		 */
		iov[0].iov_base = rx->iov[rx->iov_first + burst->n].iov_base;
		iov[0].iov_len = chain->len;
		n = tap_read(q->tap_fd, iov, 2);
		if (n <= q->hdr_len || (uint64_t)n > chain->len ||
		    n - q->hdr_len > q->max_packet)
			return n;
		if (q->hdr_len == NET_HDR_MRG_LEN)
			rx_put_num_buffers(iov, 1);
		vq_complete_at(&q->vq, burst->n, chain, n, false);
		burst->n++;
		burst->bytes += n;
		burst->cap += chain->len;
		if (burst->longest < n)
			burst->longest = n;
	}
	return 0;
}

/* Count the packets of a burst, and forget their chains. */
static void rx_end_burst(struct rx *rx, const struct rx_burst *burst)
{
	struct net_queue *q = &rx->q;

	vq_completed(&q->vq, burst->n);
	RING_COUNT_ADD(q->stats.packets, burst->n);
	RING_COUNT_ADD(q->stats.bytes,
		       burst->bytes - (uint64_t)burst->n * q->hdr_len);
	q->failures = 0;
	rx->cap -= burst->cap;
	rx->iov_first += burst->n;
	rx->first += burst->n;
	rx->n_chains -= burst->n;
	rx_learn(rx, burst->longest, burst->n);
}

/*
 * Deliver packets without the steps of rx_one(), up to @max and some @room bytes.
 * What is no packet of a burst is left to rx_one(), or is an error.  Sets
 * @n to the number of packets handled.
 */
static int rx_burst(struct rx *rx, uint64_t room, uint32_t max, uint32_t *n)
{
	struct rx_burst burst = {0};
	ssize_t last;

	if (max > rx->n_chains)
		max = rx->n_chains;
	/* All packets of a burst are in the same window. */
	if (max > rx->window)
		max = rx->window;
	last = rx_read_burst(rx, room, max, &burst);
	if (burst.n)
		rx_end_burst(rx, &burst);
	*n = burst.n;
	if (!last)
		return 0;
	rx->read_iov = 1;
	rx->read_cap = rx_chain(rx, 0)->len;
	return rx_received(rx, last);
}

/* Deliver a burst if that is possible; else one packet. */
static int rx_some(struct rx *rx, uint64_t room, int *n)
{
	uint32_t burst = 0;
	int r = 0;

	/* A burst has no step for copies: its loop is to stay short. */
	if (!rx->held && !rx->q.capture)
		r = rx_burst(rx, room, NET_BATCH - *n, &burst);
	*n += burst;
	if (r || burst)
		return r;
	r = rx_one(rx);
	*n += !r;
	return r;
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
		r = rx_some(rx, end - q->stats.bytes, &n);
		/* A packet may have completed many chains: see VQ_MAX_DONE. */
		if (q->vq.n_done >= NET_BATCH && !r)
			r = net_flush(q);
		if (rx->one && !r)
			r = net_set_wait(q, NET_WAIT_TAP_IN);
	}
	return net_end_pass(q, r, n);
}

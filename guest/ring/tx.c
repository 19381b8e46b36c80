// SPDX-License-Identifier: Apache-2.0
/*
 * From the master's transmit queue to the TAP.
 *
 * Chains are taken in batches.  Their packets go to the TAP with one system call
 * where io_uring is used (uring.c), else with one write each.  So do a few, for
 * which a call of io_uring costs more than it saves, and UDP packets that
 * segment.c makes several of.
 *
 * A chain is completed when its packet has its result, in the order in which it
 * came.  Those that the TAP has no room for stay in hand, with their vectors: the
 * master may have changed the chain.  A stop leaves them to a successor.
 */
#include <assert.h>
#include <errno.h>
#include "tap.h"
#include "tx.h"

static_assert((int)TX_BATCH <= (int)URING_PACKETS, "one call takes a batch");

/**
 * tx_start() - Begin with no chain in hand; call it after net_init()
 * @tx:		Transmit queue
 */
void tx_start(struct tx *tx)
{
	tx->waiting = false;
	tx->longest = TX_SHORT + 1; /* unknown: as if they were long */
	tx->next = 0;
	tx->n = 0;
	tx->segments.left = 0;
	uring_start(&tx->uring, tx->q.tap_fd);
}

/*
 * Decide what follows from an error of the TAP: wait (-EAGAIN), drop the packet
 * (0), or end the ring (-EPROTO).  -EFAULT: drop the packet, and pause.
 */
static int tx_error(struct net_queue *q, int error)
{
	switch (error) {
	case EAGAIN:
		return net_set_wait(q, NET_WAIT_TAP_OUT);
	case EINVAL: /* a field of the net header: csum_start, gso_size ... */
	case EMSGSIZE:
		RING_COUNT_ADD(q->stats.drop_refused, 1);
		return 0;
	case ENOBUFS:
	case ENOMEM:
		RING_COUNT_ADD(q->stats.drop_memory, 1);
		return 0;
	case EIO: /* the TAP is down */
		RING_COUNT_ADD(q->stats.drop_down, 1);
		return 0;
	case EFAULT: /* the packet's page is gone, or no memory is left */
		RING_COUNT_ADD(q->stats.drop_memory, 1);
		return -EFAULT;
	/* The next packet would meet these again. */
	case EBADF:
	case EBADFD: /* the TAP was deleted */
	case EPIPE:
		return net_tap_fault(q, error);
	default:
		RING_COUNT_ADD(q->stats.drop_other, 1);
		return 0;
	}
}

/* The first packet in hand has been sent. */
static void tx_sent(struct tx *tx, uint64_t len)
{
	struct net_queue *q = &tx->q;

	q->failures = 0;
	net_count_packet(q, len);
	if (__builtin_expect(!!q->capture, 0))
		capture_packet(q->capture, RING_TX, q->hdr_len,
			       tx->packet[tx->next].iov, len);
}

/*
 * Write the segments of a UDP packet, which counts as one packet.  One that the
 * TAP does not take is lost, and the others are written, as on a real network.
 * If it is full, the rest of them wait.  Returns as tx_error() does.
 */
static int tx_write_segments(struct tx *tx, uint64_t len)
{
	struct net_queue *q = &tx->q;
	struct segments *s = &tx->segments;
	ssize_t n;
	int r = 0;

	while (s->left && r != -EFAULT) {
		n = tap_write(q->tap_fd, s->iov, segments_build(s));
		r = n < 0 ? tx_error(q, -n) : 0;
		if (r == -EAGAIN || r == -EPROTO)
			return r;
		s->sent |= n >= 0;
		segments_next(s);
	}
	s->left = 0;
	if (s->sent) {
		RING_COUNT_ADD(q->stats.segmented, 1);
		tx_sent(tx, len);
	}
	return r;
}

/* Write a packet, unless that is done.  Returns as tx_error() does. */
static int tx_write(struct tx *tx, struct tap_packet *packet, uint64_t len)
{
	struct net_queue *q = &tx->q;
	ssize_t n = packet->result;
	int r = 0;

	packet->result = 0;
	if (!n && q->segment_udp && !tx->waiting)
		r = segments_begin(&tx->segments, packet->iov, len, q->hdr_len);
	if (r < 0)
		return tx_error(q, -r);
	if (tx->segments.left)
		return tx_write_segments(tx, len);
	if (!n)
		n = tap_write(q->tap_fd, packet->iov, packet->n);
	if (n < 0)
		return tx_error(q, -n);
	tx_sent(tx, len);
	return 0;
}

/* Handle the first packet in hand. */
static int tx_one(struct tx *tx)
{
	struct net_queue *q = &tx->q;
	struct tap_packet *packet = &tx->packet[tx->next];
	const struct vq_chain *chain = &tx->chain[tx->next];
	int r = 0;

	if (!packet->n) {
		RING_COUNT_ADD(q->stats.drop_bad, 1);
	} else {
		r = tx_write(tx, packet, chain->len);
		if (r == -EAGAIN && !tx->waiting)
			RING_COUNT_ADD(q->stats.tap_full, 1);
		tx->waiting = r == -EAGAIN;
		if (r && r != -EFAULT)
			return r;
	}
	/* Also after EFAULT: else one page that never comes back would end all. */
	vq_complete(&q->vq, chain, 0, false);
	tx->next++;
	return r ? net_tap_failure(q, -r) : 0;
}

static bool tx_acceptable(const struct net_queue *q,
			  const struct vq_chain *chain)
{
	return chain->len >= q->hdr_len &&
	       chain->len - q->hdr_len <= q->max_packet;
}

/* Have the start of a packet on its way into the cache: its headers. */
static void tx_prefetch(const struct iovec *iov)
{
	const uint8_t *start = iov->iov_base;

	prefetch_read(start);
	if (iov->iov_len > RING_CACHELINE)
		prefetch_read(start + RING_CACHELINE);
}

/*
 * Take several simple chains at once, @room at most, whose vectors go to @iov, if
 * packets are short: how long these are is known only when they are taken, and
 * those of one pass must not be too long together.  Returns their number.
 */
static uint32_t tx_take_simple(struct tx *tx, struct iovec *iov, uint32_t room)
{
	uint32_t n;

	if (tx->longest > TX_SHORT)
		return 0;
	if (room > TX_TAKE)
		room = TX_TAKE;
	n = vq_take(&tx->q.vq, iov, &tx->chain[tx->n], room);
	for (uint32_t i = 0; i < n; i++)
		tx_prefetch(&iov[i]);
	return n;
}

/* Learn from the batch before how long packets are; nothing from none. */
static void tx_learn(struct tx *tx)
{
	if (tx->n)
		tx->longest = 0;
	for (uint32_t i = 0; i < tx->n; i++)
		if (tx->longest < tx->chain[i].len)
			tx->longest = tx->chain[i].len;
}

/*
 * Take chains, @room at most; none is in hand.  Returns 0, or as vq_next() does,
 * also after it has taken some.
 */
static int tx_take(struct tx *tx, uint32_t room)
{
	struct net_queue *q = &tx->q;
	uint64_t bytes = 0;
	uint32_t iovs = 0;
	int r;

	tx_learn(tx);
	tx->next = 0;
	tx->n = 0;
	if (room > TX_BATCH)
		room = TX_BATCH;
	/* segment.c works on one packet. */
	if (q->segment_udp)
		room = 1;
	while (tx->n < room && iovs <= TX_BATCH_IOVS &&
	       bytes < TX_BATCH_BYTES) {
		struct iovec *iov = tx->iov + iovs;
		uint32_t n = tx_take_simple(tx, iov, room - tx->n);

		if (!n) {
			/* There is room for the vectors that it may fill. */
			r = vq_next(&q->vq, iov, &tx->chain[tx->n]);
			if (r)
				return r;
			n = 1;
		}
		for (; n; n--) {
			const struct vq_chain *chain = &tx->chain[tx->n];

			tx->packet[tx->n++] = (struct tap_packet){
				.iov = tx->iov + iovs,
				.n = tx_acceptable(q, chain) ? chain->n_iov : 0,
			};
			iovs += chain->n_iov;
			bytes += chain->len;
		}
	}
	return 0;
}

/*
 * Send the packets in hand, as many as can be; raise *@done by the number that
 * was handled.  Returns 0 or as tx_one() does.
 */
static int tx_send(struct tx *tx, int *done)
{
	struct net_queue *q = &tx->q;
	uint32_t n = tx->n - tx->next;
	int r = 0, one;

	if (n >= TX_URING_MIN && uring_ready(&tx->uring) && !q->segment_udp)
		uring_write(&tx->uring, q->tap_fd, tx->packet + tx->next, n);
	while (tx->next < tx->n) {
		/* What is written must be completed: it is not sent again. */
		if (!tx->packet[tx->next].result &&
		    (r || read_once(q->interrupt)))
			break;
		one = tx_one(tx);
		*done += !one;
		if (one && r != -EPROTO)
			r = one;
	}
	return r;
}

static int tx_batch(struct tx *tx, int *done)
{
	int taken = 0, r;

	if (tx->next == tx->n)
		taken = tx_take(tx, NET_BATCH - *done);
	if (taken == -EAGAIN && !tx->n)
		return net_set_wait(&tx->q, NET_WAIT_KICK);
	r = tx_send(tx, done);
	/* The chains in front of the one that broke the ring were correct. */
	return taken == -EPROTO ? taken : r;
}

/**
 * tx_pass() - Send what the master has queued, up to a batch of the ring's
 * @tx:		Transmit queue
 *
 * Return: number of chains handled, or -errno: see net.h
 */
int tx_pass(struct tx *tx)
{
	struct net_queue *q = &tx->q;
	uint64_t end = q->stats.bytes + NET_BATCH_BYTES;
	int n = 0, r = net_begin_pass(q);

	if (!r && net_paused(q))
		return 0;
	q->wait = NET_WAIT_NOT;
	while (!r && n < NET_BATCH && net_goes_on(q, end))
		r = tx_batch(tx, &n);
	return net_end_pass(q, r, n);
}

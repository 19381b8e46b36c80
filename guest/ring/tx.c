// SPDX-License-Identifier: Apache-2.0
/*
 * From the master's transmit queue to the TAP: one write per chain, except for
 * UDP packets that segment.c makes several of.
 */
#include <errno.h>
#include "tap.h"
#include "tx.h"

/**
 * tx_start() - Begin with no chain pending; call it after net_init()
 * @tx:		Transmit queue
 */
void tx_start(struct tx *tx)
{
	tx->pending = false;
	tx->segments.left = 0;
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

static void tx_sent(struct net_queue *q, uint64_t len)
{
	q->failures = 0;
	net_count_packet(q, len);
}

/*
 * Write the segments of a UDP packet, which counts as one packet.  One that the
 * TAP does not take is lost, and the others are written, as on a real network.
 * If it is full, the rest of them wait.  Returns as tx_error() does.
 */
static int tx_write_segments(struct tx *tx)
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
		tx_sent(q, tx->chain.len);
	}
	return r;
}

/* Write the packet in tx->iov.  Returns as tx_error() does. */
static int tx_write(struct tx *tx)
{
	struct net_queue *q = &tx->q;
	ssize_t n;
	int r = 0;

	if (q->segment_udp && !tx->pending)
		r = segments_begin(&tx->segments, tx->iov, tx->chain.len,
				   q->hdr_len);
	if (r < 0)
		return tx_error(q, -r);
	if (tx->segments.left)
		return tx_write_segments(tx);
	n = tap_write(q->tap_fd, tx->iov, tx->chain.n_iov);
	if (n < 0)
		return tx_error(q, -n);
	tx_sent(q, tx->chain.len);
	return 0;
}

static int tx_one(struct tx *tx)
{
	struct net_queue *q = &tx->q;
	struct vq_chain *chain = &tx->chain;
	int r = 0;

	/* A pending chain keeps its vectors: the master may have changed it. */
	if (!tx->pending)
		r = vq_next(&q->vq, tx->iov, chain);
	if (r == -EAGAIN)
		return net_set_wait(q, NET_WAIT_KICK);
	if (r)
		return r;

	if (chain->len < q->hdr_len ||
	    chain->len - q->hdr_len > q->max_packet) {
		RING_COUNT_ADD(q->stats.drop_bad, 1);
	} else {
		r = tx_write(tx);
		if (r == -EAGAIN && !tx->pending)
			RING_COUNT_ADD(q->stats.tap_full, 1);
		tx->pending = r == -EAGAIN;
		if (r && r != -EFAULT)
			return r;
	}
	/* Also after EFAULT: else one page that never comes back would end all. */
	vq_complete(&q->vq, chain, 0, false);
	return r ? net_tap_failure(q, -r) : 0;
}

/**
 * tx_pass() - Send what the master has queued, up to a batch
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
	while (!r && n < NET_BATCH && net_goes_on(q, end)) {
		r = tx_one(tx);
		n += !r;
	}
	return net_end_pass(q, r, n);
}

/* SPDX-License-Identifier: Apache-2.0 */
#ifndef TX_H
#define TX_H

#include "net.h"
#include "segment.h"
#include "uring.h"

enum {
	TX_BATCH = 32, /* chains in hand at the most */
	TX_TAKE = 8, /* simple chains taken at once, ... */
	TX_SHORT = 2048, /* ... after a batch of packets no longer than this */
	TX_BATCH_IOVS = 128, /* vectors from which on no further one is taken */
	/* Bytes; the worker looks between two batches whether it is to stop. */
	TX_BATCH_BYTES = 64 << 10,
	/* Packets for which io_uring is worth its call: 3 cost the same. */
	TX_URING_MIN = 4
};

struct tx {
	struct net_queue q;
	bool waiting; /* for room in the TAP for the first packet in hand */
	uint64_t longest; /* chain of the last batch, in bytes */
	uint32_t next; /* chains in hand: those from here ... */
	uint32_t n; /* ... up to this one */
	struct vq_chain chain[TX_BATCH];
	struct tap_packet packet[TX_BATCH];
	struct iovec iov[TX_BATCH_IOVS + VQ_CHAIN_IOVS];
	struct segments segments;
	struct uring uring;
};

void tx_start(struct tx *tx);
int tx_pass(struct tx *tx);

#endif

/* SPDX-License-Identifier: Apache-2.0 */
#ifndef RX_H
#define RX_H

#include "net.h"

enum {
	RX_CHAINS = 1024, /* parsed ahead; power of two */
	RX_IOVS = 4096,
	RX_TAKE = 32, /* simple chains taken at a time, ... */
	RX_SHORT = 512, /* ... while `want` is no more than that */
	RX_WINDOW = 256, /* the longest of so many packets sets `want` */
	/* For what exceeds the buffers: a byte or more above any packet. */
	RX_SPILL = RING_MAX_PACKET + 64
};

/*
 * Chains are taken ahead and kept in the order in which they came, so that one
 * readv() can fill as many of them as a packet needs.  Their iovecs lie one
 * behind the other in iov[], from iov_first to iov_end.
 */
struct rx {
	struct net_queue q;
	bool starved; /* it has no buffers, and that is counted */
	bool one; /* the pass ends after one packet, the only one it seems */
	uint32_t held; /* length of a packet that waits for buffers, or 0 */
	uint64_t held_until; /* CLOCK_MONOTONIC; 0: not set yet */
	uint64_t hold_ns;
	uint32_t want; /* bytes to offer to the next read */
	uint32_t longest; /* packet in this window, with its header */
	uint32_t window; /* packets left in it */
	uint64_t cap; /* bytes in all chains here */
	uint64_t read_cap; /* bytes, and iovecs, offered to the last read */
	uint32_t read_iov;
	uint32_t first;
	uint32_t n_chains;
	uint32_t iov_first;
	uint32_t iov_end;
	struct vq_chain chain[RX_CHAINS];
	struct iovec iov[RX_IOVS];
	uint8_t spill[RX_SPILL];
};

void rx_start(struct rx *rx);
void rx_stop(struct rx *rx);
int rx_pass(struct rx *rx);

#endif

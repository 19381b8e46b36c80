/* SPDX-License-Identifier: Apache-2.0 */
#ifndef RX_H
#define RX_H

#include "net.h"

enum {
	RX_CHAINS = 1024, /* parsed ahead; power of two */
	RX_IOVS = 4096,
	RX_WINDOW = 256, /* packets, of which the longest says what to offer */
	/* Takes what exceeds the buffers: at least a byte over any packet. */
	RX_SPILL = RING_MAX_PACKET + 64
};

/*
 * Chains wait here in the order in which they came, so that one readv() may
 * fill as many of them as a packet needs.  Their iovecs lie one behind the
 * other in iov[], from iov_first to iov_end.
 */
struct rx {
	struct net_queue q;
	bool starved; /* and counted as such */
	uint32_t held; /* length of a packet that waits for buffers, or 0 */
	uint64_t held_until; /* CLOCK_MONOTONIC, or 0 */
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

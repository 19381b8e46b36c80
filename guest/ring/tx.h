/* SPDX-License-Identifier: Apache-2.0 */
#ifndef TX_H
#define TX_H

#include "net.h"
#include "segment.h"

struct tx {
	struct net_queue q;
	bool pending; /* `chain` waits until the TAP takes it */
	struct vq_chain chain;
	struct iovec iov[VQ_CHAIN_IOVS];
	struct segments segments;
};

void tx_start(struct tx *tx);
int tx_pass(struct tx *tx);

#endif

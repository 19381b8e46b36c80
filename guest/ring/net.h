/* SPDX-License-Identifier: Apache-2.0 */
/*
 * What the two directions of a queue pair, rx.c and tx.c, have in common.
 *
 * The net header passes unchanged (IFF_VNET_HDR, TUNSETVNETHDRSZ): the kernel
 * reads it once from the master's memory, and checks it.  A malformed packet is
 * dropped and counted, and its chain is given back; only a malformed ring is a
 * fault.
 *
 * A system call on the TAP may fail for a reason that passes: the file system
 * behind the master's memory is full (EFAULT), the kernel has no memory.  Such a
 * failure costs one packet, and the queue pauses, longer each time.  After
 * NET_FAILURES failures in a row it is a fault, so that the owner learns of it.
 *
 * A pass handles the packets that are there, up to a batch, and sets q->wait to
 * what the caller should wait for.  It returns the number of chains or packets
 * handled; -ESTALE if the ring was taken from us; or -EPROTO, with the fault in
 * q->vq.fault.  After an error it must not be called again.
 */
#ifndef NET_H
#define NET_H

#include <errno.h>
#include "capture.h"
#include "vq.h"

enum {
	NET_BATCH = 64, /* chains completed before used idx is updated */
	/* Bytes that end a pass: 64 long packets would take half a ms. */
	NET_BATCH_BYTES = 256 << 10,
	NET_HDR_LEN = 10, /* struct virtio_net_hdr, legacy */
	NET_HDR_MRG_LEN = 12, /* with num_buffers behind it */
	NET_HDR_NUM_BUFFERS = 10, /* offset */
	NET_FAILURES = 12, /* in a row: half a second with the pauses */
	NET_PAUSE_MIN = 1000000, /* ns: the first pause; it doubles ... */
	NET_PAUSE_DOUBLINGS = 7 /* ... so often */
};

/* What a queue waits for after its last pass. */
enum net_wait {
	NET_WAIT_NOT = 0, /* there is more to do */
	NET_WAIT_KICK, /* chains */
	NET_WAIT_TAP_IN,
	NET_WAIT_TAP_OUT,
	NET_WAIT_PAUSE /* until resume_at */
};

struct net_queue {
	struct vq vq;
	enum net_wait wait;
	int tap_fd;
	int call_fd;
	bool call_is_socket; /* as User Mode Linux has it */
	int error; /* errno that came with the fault */
	uint32_t failures; /* of the TAP, in a row */
	uint64_t resume_at; /* CLOCK_MONOTONIC; for NET_WAIT_PAUSE */
	uint32_t call_value;
	uint32_t *call_addr;
	uint32_t hdr_len;
	uint32_t max_packet;
	bool mergeable;
	bool segment_udp; /* TX: segment.c is to look at each packet */
	bool pass_quiet; /* no kick was asked for when the pass began */
	uint16_t pass_avail; /* next chain to take, when the pass began */
	struct capture *capture; /* gets copies of packets; NULL: none does */
	const uint32_t *interrupt; /* not 0: end the pass after this packet */
	struct ring_stats stats;
};

int net_init(struct net_queue *q, const struct mem *mem,
	     const struct ring_conf *conf, bool writable);
int net_flush(struct net_queue *q);
int net_begin_pass(struct net_queue *q);
int net_end_pass(struct net_queue *q, int r, int n);
int net_tap_fault(struct net_queue *q, int error);
int net_tap_failure(struct net_queue *q, int error);
bool net_paused(const struct net_queue *q);
uint64_t net_now(void);

/* May a pass take another packet?  Not after @end bytes, or if it must end. */
static inline bool net_goes_on(const struct net_queue *q, uint64_t end)
{
	/* Relaxed: what the owner asks for is read later, under its lock. */
	return q->stats.bytes < end && !read_once(q->interrupt);
}

/* End the pass; the caller starts another one after the wait. */
static inline int net_set_wait(struct net_queue *q, enum net_wait wait)
{
	q->wait = wait;
	return -EAGAIN;
}

static inline void net_count_packet(struct net_queue *q, uint64_t len)
{
	RING_COUNT_ADD(q->stats.packets, 1);
	RING_COUNT_ADD(q->stats.bytes, len - q->hdr_len);
}

#endif

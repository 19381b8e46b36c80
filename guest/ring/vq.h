/* SPDX-License-Identifier: Apache-2.0 */
/*
 * A virtqueue from the device's side, as net.c sees it: chains come, and go
 * back in the same order.  How they lie in memory is split.c's business.
 */
#ifndef VQ_H
#define VQ_H

#include <stddef.h>
#include <sys/uio.h>
#include "mem.h"
#include "ring.h"

enum {
	/* Vectors of one chain: UIO_MAXIOV less one for net.c's spill. */
	VQ_CHAIN_IOVS = 1023,
	/* Chains that may be completed before they are published. */
	VQ_MAX_DONE = 1024 + 64
};

struct vring_desc;
struct vring_avail;
struct vring_used;

/* What the master last heard from us about kicks. */
enum vq_kicks {
	VQ_KICKS_UNKNOWN = 0,
	VQ_KICKS_OFF,
	VQ_KICKS_ON
};

/* What a chain's completion will say, kept here until it is published. */
struct vq_done {
	uint32_t id;
	uint32_t len;
};

/* A chain: its buffers are in the iovecs that vq_next() filled. */
struct vq_chain {
	uint64_t len;
	uint16_t head;
	uint16_t n_iov;
};

/*
 * One thread at a time.  All indices are our own copies: what is in memory
 * is compared with them, never taken for them.
 */
struct vq {
	const struct vring_desc *desc;
	const struct vring_avail *avail;
	struct vring_used *used_ring;
	const struct mem *mem;
	const struct ring_meta *meta; /* NULL: no session to check */
	uint64_t session;
	uint16_t num;
	uint16_t last_avail; /* next chain to take */
	uint16_t avail_idx; /* as we last read it */
	uint16_t used; /* as we last published it */
	uint16_t n_done; /* completed and not yet published */
	uint16_t write_flag; /* what VRING_DESC_F_WRITE has to be */
	bool event_idx;
	bool indirect;
	enum vq_kicks kicks;
	bool called; /* there is a previous publication to compare with */
	enum ring_fault fault;
	struct vq_done done[VQ_MAX_DONE];
};

int vq_init(struct vq *vq, const struct mem *mem, const struct ring_conf *conf,
	    bool writable);
int vq_check_fence(struct vq *vq);
bool vq_has_more(const struct vq *vq);
int vq_next(struct vq *vq, struct iovec *iov, struct vq_chain *chain);
int vq_publish(struct vq *vq);
int vq_enable_kicks(struct vq *vq);

/**
 * vq_complete() - Give a chain back to the master; seen at vq_publish()
 * @vq:		Queue; less than %VQ_MAX_DONE chains wait to be published
 * @head:	The chain
 * @len:	Bytes written to it
 */
static inline void vq_complete(struct vq *vq, uint16_t head, uint32_t len)
{
	vq->done[vq->n_done].id = head;
	vq->done[vq->n_done].len = len;
	vq->n_done++;
}

/**
 * vq_all_taken() - Has the master no chain left that it could still offer?
 * @vq:		Queue
 *
 * Return: true if as many chains as the ring has entries are in our hands
 */
static inline bool vq_all_taken(const struct vq *vq)
{
	return (uint16_t)(vq->last_avail - vq->used) >= vq->num && !vq->n_done;
}

#endif

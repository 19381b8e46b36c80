/* SPDX-License-Identifier: Apache-2.0 */
/*
 * A virtqueue from the device's side, for rx.c and tx.c: chains come, and go
 * back in the same order.  vq.c has what any format has, split.c how they lie in
 * memory; a packed virtqueue would be another file with the same functions.
 */
#ifndef VQ_H
#define VQ_H

#include <stddef.h>
#include <sys/uio.h>
#include "mem.h"
#include "ring.h"

enum {
	/* Vectors of one chain: UIO_MAXIOV less one for the spill of rx.c. */
	VQ_CHAIN_IOVS = 1023,
	/* Chains that may be completed before an update: see rx.c. */
	VQ_MAX_DONE = 1024 + 64
};

struct vring_desc;
struct vring_avail;
struct vring_used;

/* What we last told the master about kicks. */
enum vq_kicks {
	VQ_KICKS_UNKNOWN = 0, /* a predecessor's wish is still in memory */
	VQ_KICKS_OFF,
	VQ_KICKS_ON
};

/* A completed chain, kept here until it goes into the used ring. */
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
 * For one thread at a time.  All indices are our own copies: an index in the
 * master's memory is compared with them, and never used in their place.
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
	uint16_t used; /* as we last wrote it to the used ring */
	uint16_t n_done; /* completed, and not yet in the used ring */
	uint16_t write_flag; /* what VRING_DESC_F_WRITE has to be */
	bool event_idx;
	bool indirect;
	bool one_used; /* one used entry for all chains of an update */
	enum vq_kicks kicks;
	bool called; /* this session has updated used idx before */
	enum ring_fault fault;
	struct vq_done done[VQ_MAX_DONE];
};

int vq_init(struct vq *vq, const struct mem *mem, const struct ring_conf *conf,
	    bool writable);

/* The split format: split.c, where the functions are documented. */
int split_init(struct vq *vq, const struct ring_conf *conf);
int split_check_fence(struct vq *vq);
bool split_has_more(const struct vq *vq);
int split_next(struct vq *vq, struct iovec *iov, struct vq_chain *chain);
int split_update_used(struct vq *vq);
int split_enable_kicks(struct vq *vq);

static inline int vq_check_fence(struct vq *vq)
{
	return split_check_fence(vq);
}

static inline bool vq_has_more(const struct vq *vq)
{
	return split_has_more(vq);
}

static inline int vq_next(struct vq *vq, struct iovec *iov,
			  struct vq_chain *chain)
{
	return split_next(vq, iov, chain);
}

static inline int vq_update_used(struct vq *vq)
{
	return split_update_used(vq);
}

static inline int vq_enable_kicks(struct vq *vq)
{
	return split_enable_kicks(vq);
}

/**
 * vq_complete() - Give a chain back to the master; seen at vq_update_used()
 * @vq:		Queue; less than %VQ_MAX_DONE chains wait in done[]
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
 * vq_all_taken() - Check whether the master can offer no further chain
 * @vq:		Queue
 *
 * Return: true if we hold as many chains as the ring has entries; false if some
 *	   wait in done[], since the master can soon offer those again
 */
static inline bool vq_all_taken(const struct vq *vq)
{
	return (uint16_t)(vq->last_avail - vq->used) >= vq->num && !vq->n_done;
}

#endif

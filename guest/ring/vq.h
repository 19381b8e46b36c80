/* SPDX-License-Identifier: Apache-2.0 */
/*
 * A virtqueue from the device's side, for rx.c and tx.c: chains come, and go
 * back in the same order.  vq.c has what both formats have, split.c and packed.c
 * how they lie in memory.
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

struct packed_desc;
struct vring_desc;
struct vring_avail;
struct vring_used;

/* What we last told the master about kicks. */
enum vq_kicks {
	VQ_KICKS_UNKNOWN = 0, /* a predecessor's wish is still in memory */
	VQ_KICKS_OFF,
	VQ_KICKS_ON
};

/*
 * A completed chain, kept here until the master is shown that it is.  One word:
 * it is often read while the store is still on its way to the cache, and the
 * processor then has to wait if the read has another width than the store.
 */
struct vq_done {
	uint64_t word; /* length, its top bits VQ_DONE_*; id; n_desc of vq_chain */
};

enum {
	VQ_DONE_MORE = 1 << 30, /* the next chain has more of the same packet */
	VQ_DONE_LEN = VQ_DONE_MORE - 1 /* no packet is longer */
};

/* Its one descriptor has an indirect table. */
#define VQ_DONE_TABLE (1u << 31)

/*
 * Read all of the word.  A compiler that needs one byte would load one byte, which
 * waits for the whole store if it is not its first.
 */
static inline struct vq_done done_read(const struct vq_done *done)
{
	return (struct vq_done){read_once(&done->word)};
}

static inline uint32_t done_len(struct vq_done done)
{
	return done.word & VQ_DONE_LEN;
}

static inline uint16_t done_id(struct vq_done done)
{
	return done.word >> 32;
}

static inline uint16_t done_n_desc(struct vq_done done)
{
	return done.word >> 48;
}

/* A chain: its buffers are in the iovecs that vq_next() filled. */
struct vq_chain {
	uint64_t len;
	uint16_t head; /* or the id, in a packed ring */
	uint16_t n_iov;
	uint16_t n_desc; /* in a packed ring, as is `table` */
	bool table;
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
	const struct mem_region *region; /* of the last simple chain, or NULL */
	const struct ring_meta *meta; /* NULL: no session to check */
	uint64_t session;
	bool packed;
	struct packed_desc *ring; /* packed, as are the next four */
	const uint32_t *driver_event;
	uint32_t *device_event;
	struct ring_position *position; /* NULL: nothing is recorded */
	uint16_t taken; /* descriptors that we hold */
	uint16_t num;
	uint16_t last_avail; /* next chain to take */
	uint16_t avail_idx; /* as we last read it */
	uint16_t desc_ahead; /* next chain whose descriptor is prefetched; split, */
	uint16_t buffer_ahead; /* and whose buffer is: see split.c */
	uint16_t used; /* as we last wrote it; packed: the position behind it */
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

/* The formats: split.c and packed.c, where the functions are documented. */
int split_init(struct vq *vq, const struct ring_conf *conf);
int split_check_fence(struct vq *vq);
bool split_has_more(const struct vq *vq);
int split_next(struct vq *vq, struct iovec *iov, struct vq_chain *chain);
unsigned int split_take(struct vq *vq, struct iovec *iov,
			struct vq_chain *chain, unsigned int n);
int split_update_used(struct vq *vq);
int split_enable_kicks(struct vq *vq);
int packed_init(struct vq *vq, const struct ring_conf *conf);
int packed_check_fence(struct vq *vq);
bool packed_has_more(const struct vq *vq);
int packed_next(struct vq *vq, struct iovec *iov, struct vq_chain *chain);
unsigned int packed_take(struct vq *vq, struct iovec *iov,
			 struct vq_chain *chain, unsigned int n);
int packed_update_used(struct vq *vq);
int packed_enable_kicks(struct vq *vq);

static inline int vq_check_fence(struct vq *vq)
{
	return vq->packed ? packed_check_fence(vq) : split_check_fence(vq);
}

static inline bool vq_has_more(const struct vq *vq)
{
	return vq->packed ? packed_has_more(vq) : split_has_more(vq);
}

static inline int vq_next(struct vq *vq, struct iovec *iov,
			  struct vq_chain *chain)
{
	return vq->packed ? packed_next(vq, iov, chain)
			  : split_next(vq, iov, chain);
}

/**
 * vq_take() - Take several chains that are simple
 * @vq:		Queue
 * @iov:	Room for @n vectors, one for each chain
 * @chain:	Room for @n chains
 * @n:		How many to take at most
 *
 * A chain is simple if it is one direct descriptor, whose buffer lies in one
 * region.  What is not is left to vq_next(), as is whatever is wrong.
 *
 * Return: number of chains taken; 0: ask vq_next()
 */
static inline unsigned int vq_take(struct vq *vq, struct iovec *iov,
				   struct vq_chain *chain, unsigned int n)
{
	return vq->packed ? packed_take(vq, iov, chain, n)
			  : split_take(vq, iov, chain, n);
}

static inline int vq_update_used(struct vq *vq)
{
	return vq->packed ? packed_update_used(vq) : split_update_used(vq);
}

static inline int vq_enable_kicks(struct vq *vq)
{
	return vq->packed ? packed_enable_kicks(vq) : split_enable_kicks(vq);
}

/**
 * vq_complete_at() - Complete a chain of several, which vq_completed() counts
 * @vq:		Queue
 * @i:		Number of the chain: 0, 1 ...; less than %VQ_MAX_DONE chains are
 *		completed before
 * @chain:	The chain
 * @len:	Bytes written to it
 * @more:	The chain that is completed next has more of the same packet
 */
static inline void vq_complete_at(struct vq *vq, unsigned int i,
				  const struct vq_chain *chain, uint32_t len,
				  bool more)
{
	uint32_t low = len | (more ? VQ_DONE_MORE : 0) |
		       (chain->table ? VQ_DONE_TABLE : 0);

	vq->done[vq->n_done + i].word = low | (uint64_t)chain->head << 32 |
					(uint64_t)chain->n_desc << 48;
}

/**
 * vq_completed() - Give chains back to the master; seen at vq_update_used()
 * @vq:		Queue
 * @n:		Number of them
 */
static inline void vq_completed(struct vq *vq, unsigned int n)
{
	vq->n_done += n;
}

/**
 * vq_complete() - Give a chain back to the master; seen at vq_update_used()
 * @vq:		Queue; less than %VQ_MAX_DONE chains wait in done[]
 * @chain:	The chain
 * @len:	Bytes written to it
 * @more:	The chain that is completed next has more of the same packet
 */
static inline void vq_complete(struct vq *vq, const struct vq_chain *chain,
			       uint32_t len, bool more)
{
	vq_complete_at(vq, 0, chain, len, more);
	vq_completed(vq, 1);
}

/**
 * vq_all_taken() - Check whether the master can offer no further chain
 * @vq:		Queue
 *
 * Return: true if we hold as many chains, or descriptors, as the ring has
 *	   entries; false if some wait in done[], since the master can soon
 *	   offer those again
 */
static inline bool vq_all_taken(const struct vq *vq)
{
	uint16_t taken = vq->packed ? vq->taken
				    : (uint16_t)(vq->last_avail - vq->used);

	return taken >= vq->num && !vq->n_done;
}

#endif

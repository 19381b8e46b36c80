/* SPDX-License-Identifier: Apache-2.0 */
/*
 * What the formats of a virtqueue share, for the files that implement vq.h: a
 * chain's buffers become iovecs, and a value that no correct driver writes
 * breaks the ring.
 */
#ifndef FORMAT_H
#define FORMAT_H

#include <assert.h>
#include <endian.h>
#include <errno.h>
#include <stddef.h>
#include <string.h>
#include "meta.h"
#include "vq.h"

enum {
	VRING_DESC_F_NEXT = 1,
	VRING_DESC_F_WRITE = 2,
	VRING_DESC_F_INDIRECT = 4
};

struct vring_desc {
	uint64_t addr;
	uint32_t len;
	uint16_t flags;
	uint16_t next;
};

static_assert(sizeof(struct vring_desc) == 16, "VIRTIO");
static_assert(offsetof(struct vring_desc, next) == 14, "VIRTIO");

const struct vring_desc *
indirect_table(struct vq *vq, const struct vring_desc *d, uint32_t *num);
void *ring_part(const struct mem *mem, uint64_t addr, uint64_t len,
		uint64_t align);
int vq_check_session(struct vq *vq);

static inline uint16_t load16(const uint16_t *p)
{
	return le16toh(read_once(p));
}

static inline void store16(uint16_t *p, uint16_t value)
{
	write_once(p, htole16(value));
}

static inline int vq_fault(struct vq *vq, enum ring_fault fault)
{
	vq->fault = fault;
	return -EPROTO;
}

/*
 * Copy a descriptor, and read each byte of it once.  An indirect table need not
 * be aligned ("Indirect Descriptors" does not ask for it), but drivers align
 * it.
 */
static inline void desc_read(const struct vring_desc *p, struct vring_desc *d)
{
	const volatile uint8_t *from = (const volatile void *)p;
	uint8_t *to = (void *)d;
	uint64_t word[2];

	if ((uintptr_t)p % sizeof(uint64_t)) {
		/* Volatile: the compiler may neither repeat nor merge these. */
		for (size_t i = 0; i < sizeof(*d); i++)
			to[i] = from[i];
	} else {
		const uint64_t *q = (const void *)p;

		word[0] = read_once(&q[0]);
		word[1] = read_once(&q[1]);
		memcpy(d, word, sizeof(*d));
	}
	d->addr = le64toh(d->addr);
	d->len = le32toh(d->len);
	d->flags = le16toh(d->flags);
	d->next = le16toh(d->next);
}

/*
 * Have the start of a buffer on its way into the cache: the net header and the
 * packet's own headers.  An indirect table is a buffer, too.
 */
static inline void prefetch_buffer(const struct vq *vq, const uint64_t *addr)
{
	const uint8_t *p =
		mem_at(vq->mem, le64toh(read_once(addr)), 2 * RING_CACHELINE);

	if (!p)
		return;
	if (vq->write_flag) {
		prefetch_write(p);
		prefetch_write(p + RING_CACHELINE);
	} else {
		prefetch_read(p);
		prefetch_read(p + RING_CACHELINE);
	}
}

/*
 * Make a simple chain of a descriptor's buffer, which most often lies where the
 * last one did.  Returns false if the buffer is not in one region.
 */
static inline bool chain_simple(struct vq *vq, uint64_t addr, uint32_t len,
				struct iovec *iov, struct vq_chain *chain)
{
	const struct mem_region *r = vq->region;
	uint64_t offset;

	if (!r || addr - r->guest_addr >= r->size) {
		r = mem_find(vq->mem, addr);
		if (!r)
			return false;
		vq->region = r;
	}
	offset = addr - r->guest_addr;
	if (len > r->size - offset)
		return false;
	iov->iov_base = (void *)(uintptr_t)(r->host_addr + offset);
	iov->iov_len = len;
	chain->len = len;
	chain->n_iov = 1;
	chain->n_desc = 1;
	chain->table = false;
	return true;
}

static inline int chain_add(struct vq *vq, const struct vring_desc *d,
			    struct iovec *iov, struct vq_chain *chain)
{
	int n;

	if ((d->flags & VRING_DESC_F_WRITE) != vq->write_flag)
		return vq_fault(vq, RING_FAULT_DIRECTION);

	n = mem_iov(vq->mem, d->addr, d->len, iov + chain->n_iov,
		    VQ_CHAIN_IOVS - chain->n_iov);
	/* A piece that crosses from one region to the next is two. */
	if (n == -E2BIG)
		return vq_fault(vq, RING_FAULT_PIECES);
	if (n < 0)
		return vq_fault(vq, RING_FAULT_ADDRESS);
	chain->n_iov += n;
	chain->len += d->len; /* fits: at most 2^16 times 2^32 */
	return 0;
}

#endif

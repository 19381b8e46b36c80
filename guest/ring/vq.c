// SPDX-License-Identifier: Apache-2.0
/*
 * What the formats of a virtqueue have in common; see vq.h and format.h.
 */
#include "format.h"

/**
 * indirect_table() - Find the indirect table that a descriptor points to
 * @vq:		Queue
 * @d:		Descriptor with INDIRECT; its WRITE flag is ignored, as "Indirect
 *		Descriptors" says
 * @num:	Set to the number of descriptors in the table
 *
 * The table must lie in one region, as the parts of the ring must.
 *
 * Return: table, maybe not aligned; NULL and vq->fault
 */
const struct vring_desc *
indirect_table(struct vq *vq, const struct vring_desc *d, uint32_t *num)
{
	const struct vring_desc *table;

	*num = d->len / sizeof(*d);
	if (!vq->indirect || d->flags & VRING_DESC_F_NEXT) {
		vq->fault = RING_FAULT_INDIRECT;
		return NULL;
	}
	/* A longer table could not be read or written by one system call. */
	if (!*num || d->len % sizeof(*d) || *num > VQ_CHAIN_IOVS) {
		vq->fault = RING_FAULT_INDIRECT_SIZE;
		return NULL;
	}
	table = mem_at(vq->mem, d->addr, d->len);
	if (!table)
		vq->fault = RING_FAULT_ADDRESS;
	return table;
}

/**
 * vq_check_session() - Check that the daemon has not taken the ring from us
 * @vq:		Queue
 *
 * Return: 0; -ESTALE: the metadata names another session
 */
int vq_check_session(struct vq *vq)
{
	if (!vq->meta || meta_session(vq->meta) == vq->session)
		return 0;
	vq->fault = RING_FAULT_SESSION;
	return -ESTALE;
}

/**
 * ring_part() - Find a part of a ring
 * @mem:	The master's memory
 * @addr:	Guest-physical address
 * @len:	Length
 * @align:	What the address must be a multiple of
 *
 * Return: pointer; NULL if the part is not aligned, or not in one region
 */
void *ring_part(const struct mem *mem, uint64_t addr, uint64_t len,
		uint64_t align)
{
	void *p = mem_at(mem, addr, len);

	return (uintptr_t)p % align ? NULL : p;
}

static bool vq_conf_valid(const struct ring_conf *conf)
{
	return conf->size && conf->size <= RING_MAX_SIZE &&
	       conf->base <= UINT16_MAX &&
	       conf->meta_addr % _Alignof(struct ring_meta) == 0;
}

/**
 * vq_init() - Start with a ring
 * @vq:		Queue
 * @mem:	The master's memory; must not change while @vq is used
 * @conf:	Where the ring lies, and its index
 * @writable:	The buffers are to be written (receive queue)
 *
 * Return: 0; -EINVAL if the size, the base or an alignment is wrong; -EFAULT
 *	   if a part of the ring does not lie in one region; -ESTALE if the
 *	   used idx or the session in memory is not the one in @conf; -EBADMSG:
 *	   see packed_init()
 */
int vq_init(struct vq *vq, const struct mem *mem, const struct ring_conf *conf,
	    bool writable)
{
	int r;

	if (!vq_conf_valid(conf))
		return -EINVAL;

	/* done[] is large, and n_done says how much of it counts. */
	memset(vq, 0, offsetof(struct vq, done));
	vq->mem = mem;
	vq->meta = (void *)(uintptr_t)conf->meta_addr;
	vq->session = conf->session;
	vq->num = conf->size;
	vq->write_flag = writable ? VRING_DESC_F_WRITE : 0;
	vq->event_idx = conf->flags & RING_EVENT_IDX;
	vq->indirect = conf->flags & RING_INDIRECT;
	/*
	 * VIRTIO, "In-order use of descriptors": chains without an entry count
	 * as used completely, which a receive chain seldom is.  DPDK's driver
	 * reads a length for each receive chain even so.
	 */
	vq->one_used = conf->flags & RING_IN_ORDER && !writable;
	vq->packed = conf->flags & RING_PACKED;
	r = vq->packed ? packed_init(vq, conf) : split_init(vq, conf);
	/* A base that is not the used idx would complete the wrong chains. */
	return r ? r : vq_check_fence(vq);
}

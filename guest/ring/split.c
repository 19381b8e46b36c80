// SPDX-License-Identifier: Apache-2.0
/*
 * Implements vq.h with the split virtqueue (VIRTIO, "Split Virtqueues"), from
 * the device's side.
 *
 * Theory of operation
 * -------------------
 * Three parts lie in the master's memory: the descriptor table and the avail
 * ring, which the master writes, and the used ring, which we write.  The master
 * may change any of it at any time, also on purpose.  So each value is read
 * once, by an atomic load, into a local variable; the local is checked; and
 * only the local is used.  The indices that count are our own copies.  A chain
 * becomes an array of iovecs in our memory, all of them inside the master's
 * regions, before any buffer is touched; later changes of the descriptors have
 * no effect.
 *
 * A value that no correct driver writes breaks the ring: vq->fault says how,
 * the function returns -EPROTO, and the caller must not use the ring any more.
 *
 * Chains complete in the order in which they came, and vhost-user-net does not
 * track the chains in flight.  So the used index alone tells a successor where
 * to go on, and it is right at every moment.  Completions are collected in
 * vq->done, and vq_update_used() writes them together.
 *
 * The ring can be taken from us at any time.  QEMU takes it over, and moves the
 * used index, as soon as the vhost-user connection breaks; the daemon takes it
 * by writing another session number to the metadata.  vq_check_fence() sees
 * both, and nothing is written to the ring after that.
 */
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
	VRING_DESC_F_INDIRECT = 4,
	VRING_AVAIL_F_NO_INTERRUPT = 1,
	VRING_USED_F_NO_NOTIFY = 1
};

struct vring_desc {
	uint64_t addr;
	uint32_t len;
	uint16_t flags;
	uint16_t next;
};

struct vring_avail {
	uint16_t flags;
	uint16_t idx;
	uint16_t ring[]; /* num, then used_event */
};

struct vring_used_elem {
	uint32_t id;
	uint32_t len;
};

struct vring_used {
	uint16_t flags;
	uint16_t idx;
	struct vring_used_elem ring[]; /* num, then avail_event */
};

static_assert(sizeof(struct vring_desc) == 16, "VIRTIO");
static_assert(offsetof(struct vring_desc, next) == 14, "VIRTIO");
static_assert(sizeof(struct vring_used_elem) == 8, "VIRTIO");
static_assert(offsetof(struct vring_used, ring) == 4, "VIRTIO");

static uint16_t load16(const uint16_t *p)
{
	return le16toh(read_once(p));
}

static void store16(uint16_t *p, uint16_t value)
{
	write_once(p, htole16(value));
}

/* Behind the avail ring: the driver wants a call once used idx passes this. */
static const uint16_t *used_event(const struct vq *vq)
{
	return &vq->avail->ring[vq->num];
}

/* Behind the used ring: we want a kick once avail idx passes this. */
static uint16_t *avail_event(const struct vq *vq)
{
	return (uint16_t *)(void *)&vq->used_ring->ring[vq->num];
}

static int vq_fault(struct vq *vq, enum ring_fault fault)
{
	vq->fault = fault;
	return -EPROTO;
}

/*
 * Acquire: the driver fills descriptors and slots first, and raises avail idx
 * after a write barrier (virtio_wmb() in Linux).  So that they are seen with
 * it, they must be read after it.
 */
static uint16_t load_avail_idx(const struct vq *vq)
{
	return le16toh(load_acquire(&vq->avail->idx));
}

static void *ring_part(const struct mem *mem, uint64_t addr, uint64_t len,
		       uint64_t align)
{
	void *p = mem_at(mem, addr, len);

	return (uintptr_t)p % align ? NULL : p;
}

static bool vq_conf_valid(const struct ring_conf *conf)
{
	return conf->size && conf->size <= RING_MAX_SIZE &&
	       !(conf->size & (conf->size - 1)) && conf->base <= UINT16_MAX &&
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
 *	   used idx or the session in memory is not the one in @conf
 */
int vq_init(struct vq *vq, const struct mem *mem, const struct ring_conf *conf,
	    bool writable)
{
	uint64_t num = conf->size, event = conf->flags & RING_EVENT_IDX ? 2 : 0;

	if (!vq_conf_valid(conf))
		return -EINVAL;

	/* done[] is large, and n_done says how much of it counts. */
	memset(vq, 0, offsetof(struct vq, done));
	vq->desc = ring_part(mem, conf->desc, 16 * num, 16);
	vq->avail = ring_part(mem, conf->driver, 4 + 2 * num + event, 2);
	vq->used_ring = ring_part(mem, conf->device, 4 + 8 * num + event, 4);
	if (!vq->desc || !vq->avail || !vq->used_ring)
		return -EFAULT;

	vq->mem = mem;
	vq->meta = (void *)(uintptr_t)conf->meta_addr;
	vq->session = conf->session;
	vq->num = num;
	vq->last_avail = conf->base;
	vq->avail_idx = conf->base;
	vq->used = conf->base;
	vq->write_flag = writable ? VRING_DESC_F_WRITE : 0;
	vq->event_idx = conf->flags & RING_EVENT_IDX;
	vq->indirect = conf->flags & RING_INDIRECT;
	/*
	 * VIRTIO, "In-order use of descriptors": chains without an entry count
	 * as used completely, which a receive chain seldom is.  DPDK's driver
	 * reads a length for each receive chain even so.
	 */
	vq->one_used = conf->flags & RING_IN_ORDER && !writable;
	/* A base that is not the used idx would complete the wrong chains. */
	return vq_check_fence(vq);
}

/**
 * vq_check_fence() - Check that the ring is still ours
 * @vq:		Queue
 *
 * Return: 0; -ESTALE: it is not, and nothing may be written to it any more
 */
int vq_check_fence(struct vq *vq)
{
	if (load16(&vq->used_ring->idx) != vq->used)
		vq->fault = RING_FAULT_USED_MOVED;
	else if (vq->meta && meta_session(vq->meta) != vq->session)
		vq->fault = RING_FAULT_SESSION;
	else
		return 0;
	return -ESTALE;
}

/**
 * vq_has_more() - Check for chains without taking one
 * @vq:		Queue
 *
 * A wrong avail idx counts too: vq_next() then reports it.
 *
 * Return: true if the master's avail idx is not the index of our next chain
 */
bool vq_has_more(const struct vq *vq)
{
	return load_avail_idx(vq) != vq->last_avail;
}

/*
 * Read avail idx.  Counted from the chains that we gave back, the master cannot
 * have offered more than the ring has entries, nor less than we have taken.
 */
static int vq_look(struct vq *vq)
{
	uint16_t idx = load_avail_idx(vq);
	/* In 16 bits: the difference is right although idx wraps at 2^16. */
	uint16_t out = idx - vq->used;
	uint16_t taken = vq->last_avail - vq->used;

	if (out > vq->num || out < taken)
		return vq_fault(vq, RING_FAULT_AVAIL_IDX);
	vq->avail_idx = idx;
	return out == taken ? -EAGAIN : 0;
}

/*
 * Copy a descriptor, and read each byte of it once.  An indirect table need not
 * be aligned ("Indirect Descriptors" does not ask for it), but drivers align
 * it.
 */
static void desc_read(const struct vring_desc *p, struct vring_desc *d)
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

static int chain_add(struct vq *vq, const struct vring_desc *d,
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

/*
 * Find the indirect table that a descriptor points to.  It must lie in one
 * region, as the parts of the ring must.  The descriptor's WRITE flag is
 * ignored, as "Indirect Descriptors" says.
 */
static const struct vring_desc *
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

/*
 * Follow a chain: direct descriptors, of which the last may point to an
 * indirect table.  Neither part may have more descriptors than its table, so
 * that a chain which leads back to itself ends too.
 */
static int chain_walk(struct vq *vq, uint16_t i, struct iovec *iov,
		      struct vq_chain *chain)
{
	const struct vring_desc *table = vq->desc;
	uint32_t num = vq->num, left = num;
	/* Not `table != vq->desc`: the master may place a table there. */
	bool nested = false;
	struct vring_desc d;
	int r;

	for (;;) {
		if (!left--)
			return vq_fault(vq, RING_FAULT_LOOP);
		desc_read(&table[i], &d);

		if (d.flags & VRING_DESC_F_INDIRECT) {
			if (nested)
				return vq_fault(vq, RING_FAULT_NESTED);
			nested = true;
			table = indirect_table(vq, &d, &num);
			if (!table)
				return -EPROTO;
			left = num;
			i = 0;
			continue;
		}
		r = chain_add(vq, &d, iov, chain);
		if (r || !(d.flags & VRING_DESC_F_NEXT))
			return r;
		i = d.next;
		if (i >= num)
			return vq_fault(vq, RING_FAULT_NEXT);
	}
}

/* While there is work we poll anyway, and a kick costs the master a VM exit. */
static void vq_disable_kicks(struct vq *vq)
{
	vq->kicks = VQ_KICKS_OFF;
	/* With EVENT_IDX the old avail_event is passed, and has no effect. */
	if (!vq->event_idx)
		store16(&vq->used_ring->flags, VRING_USED_F_NO_NOTIFY);
}

/**
 * vq_next() - Take the next chain the master made available
 * @vq:		Queue
 * @iov:	Room for %VQ_CHAIN_IOVS vectors, which cover the buffers
 * @chain:	The chain
 *
 * Return: 0, -EAGAIN if there is none, -EPROTO if the master broke the ring
 */
int vq_next(struct vq *vq, struct iovec *iov, struct vq_chain *chain)
{
	int r;

	if (vq->avail_idx == vq->last_avail) {
		r = vq_look(vq);
		if (r)
			return r;
	}
	if (vq->kicks != VQ_KICKS_OFF)
		vq_disable_kicks(vq);

	chain->head = load16(&vq->avail->ring[vq->last_avail & (vq->num - 1)]);
	chain->len = 0;
	chain->n_iov = 0;
	if (chain->head >= vq->num)
		return vq_fault(vq, RING_FAULT_HEAD);
	r = chain_walk(vq, chain->head, iov, chain);
	if (r)
		return r;
	vq->last_avail++;
	return 0;
}

/* Has idx gone past event on its way from old to now? */
static bool event_passed(uint16_t event, uint16_t now, uint16_t old)
{
	return (uint16_t)(now - event - 1) < (uint16_t)(now - old);
}

/* Does the driver want an interrupt for used idx going from old to vq->used? */
static bool vq_wants_call(struct vq *vq, uint16_t old)
{
	bool first = !vq->called;

	/*
	 * Our store of used idx must be visible before we read the driver's
	 * wish.  Pairs with the driver's barrier (virtio_mb() in Linux) between
	 * writing its wish and looking at used idx: both sides store, fence,
	 * load, so one of them sees the other's store.  Without the fence each
	 * may miss it, and the driver sleeps with a used chain in the ring.
	 */
	full_fence();
	vq->called = true;
	if (!vq->event_idx)
		return !(load16(&vq->avail->flags) &
			 VRING_AVAIL_F_NO_INTERRUPT);
	/* A predecessor may have updated it, and ended before it called. */
	return first || event_passed(load16(used_event(vq)), vq->used, old);
}

static void vq_put_used(struct vq *vq, uint16_t idx, const struct vq_done *done)
{
	struct vring_used_elem *elem =
		&vq->used_ring->ring[idx & (vq->num - 1)];

	write_once(&elem->id, htole32(done->id));
	write_once(&elem->len, htole32(done->len));
}

/**
 * vq_update_used() - Write the completed chains to the used ring
 * @vq:		Queue; at least one chain is completed
 *
 * With IN_ORDER one entry stands for all chains of a transmit queue: it has the
 * head of the last one, and lies where the first one's would.
 *
 * Return: 1 if the master wants an interrupt, 0 if not, -ESTALE if the ring
 *	   is no longer ours
 */
int vq_update_used(struct vq *vq)
{
	uint16_t old = vq->used;
	int r = vq_check_fence(vq);

	if (r)
		return r;

	if (vq->one_used)
		vq_put_used(vq, old, &vq->done[vq->n_done - 1]);
	else
		for (uint16_t i = 0; i < vq->n_done; i++)
			vq_put_used(vq, old + i, &vq->done[i]);
	/* Atomic, because worker_read_ring() reads it from another thread. */
	write_once(&vq->used, old + vq->n_done);
	vq->n_done = 0;
	/*
	 * Release: the entries must be visible before idx is.  Pairs with the
	 * driver's barrier (virtio_rmb() in Linux) between reading used idx and
	 * reading the entries.
	 */
	store_release(&vq->used_ring->idx, htole16(vq->used));
	return vq_wants_call(vq, old);
}

/**
 * vq_enable_kicks() - Ask the master for a kick with its next chain
 * @vq:		Queue; all available chains are taken
 *
 * Return: 0: the caller may sleep; 1: chains have come meanwhile; -ESTALE: the
 *	   ring is no longer ours
 */
int vq_enable_kicks(struct vq *vq)
{
	int r;

	if (vq->kicks != VQ_KICKS_ON) {
		r = vq_check_fence(vq);
		if (r)
			return r;
		vq->kicks = VQ_KICKS_ON;
		if (vq->event_idx)
			store16(avail_event(vq), vq->last_avail);
		else
			store16(&vq->used_ring->flags, 0);
		/*
		 * What we ask for must be visible before we look at avail idx.
		 * Pairs with the driver's barrier (virtio_mb() in Linux)
		 * between raising avail idx and reading avail_event, or flags:
		 * either the driver sees that we want a kick, or we see its
		 * idx.
		 */
		full_fence();
	}
	/* Chains offered before the master saw our wish have no kick. */
	return vq_has_more(vq);
}

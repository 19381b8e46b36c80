// SPDX-License-Identifier: Apache-2.0
/*
 * Serves vq.h with the split virtqueue (VIRTIO, "Split Virtqueues"), from
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
 * vq->done, and split_update_used() writes them together.
 *
 * The ring can be taken from us at any time.  QEMU takes it over, and moves the
 * used index, as soon as the vhost-user connection breaks; the daemon takes it
 * by writing another session number to the metadata.  split_check_fence() sees
 * both, and nothing is written to the ring after that.
 */
#include "format.h"

enum {
	/* How many chains split_prefetch() looks ahead. */
	SPLIT_DESCS_AHEAD = 16,
	SPLIT_BUFFERS_AHEAD = 8,
	VRING_AVAIL_F_NO_INTERRUPT = 1,
	VRING_USED_F_NO_NOTIFY = 1
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

static_assert(sizeof(struct vring_used_elem) == 8, "VIRTIO");
static_assert(offsetof(struct vring_used, ring) == 4, "VIRTIO");

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

/*
 * Acquire: the driver fills descriptors and slots first, and raises avail idx
 * after a write barrier (virtio_wmb() in Linux).  So that they are seen with
 * it, they must be read after it.
 */
static uint16_t load_avail_idx(const struct vq *vq)
{
	return le16toh(load_acquire(&vq->avail->idx));
}

/**
 * split_init() - Find the parts of a ring, and start at its base
 * @vq:		Queue; what both formats have is set
 * @conf:	Where the ring lies, and its index
 *
 * Return: 0; -EINVAL: the size is no power of two; -EFAULT: a part of the ring
 *	   does not lie in one region
 */
int split_init(struct vq *vq, const struct ring_conf *conf)
{
	uint64_t num = conf->size, event = vq->event_idx ? 2 : 0;

	if (num & (num - 1))
		return -EINVAL;
	vq->desc = ring_part(vq->mem, conf->desc, 16 * num, 16);
	vq->avail = ring_part(vq->mem, conf->driver, 4 + 2 * num + event, 2);
	vq->used_ring =
		ring_part(vq->mem, conf->device, 4 + 8 * num + event, 4);
	if (!vq->desc || !vq->avail || !vq->used_ring)
		return -EFAULT;
	vq->last_avail = conf->base;
	vq->avail_idx = conf->base;
	vq->used = conf->base;
	return 0;
}

/**
 * split_check_fence() - Check that the ring is still ours
 * @vq:		Queue
 *
 * Return: 0; -ESTALE: it is not, and nothing may be written to it any more
 */
int split_check_fence(struct vq *vq)
{
	if (load16(&vq->used_ring->idx) != vq->used) {
		vq->fault = RING_FAULT_USED_MOVED;
		return -ESTALE;
	}
	return vq_check_session(vq);
}

/**
 * split_has_more() - Check for chains without taking one
 * @vq:		Queue
 *
 * A wrong avail idx counts too: split_next() then reports it.
 *
 * Return: true if the master's avail idx is not the index of our next chain
 */
bool split_has_more(const struct vq *vq)
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
	/* The next chain itself is read at once: asking for it is too late. */
	vq->desc_ahead = vq->last_avail + 1;
	vq->buffer_ahead = vq->last_avail + 1;
	return out == taken ? -EAGAIN : 0;
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

/* Guess the head of a chain that comes later: it may still change. */
static uint16_t guess_head(const struct vq *vq, uint16_t i)
{
	/* Masked, so that it is an index into the table in any case. */
	return load16(&vq->avail->ring[i & (vq->num - 1)]) & (vq->num - 1);
}

/*
 * What the master wrote is in the cache of its processor.  For a chain we miss a
 * descriptor and then a buffer, each for as long as several small packets take.
 * So ask for both some chains earlier.  What is read here is not used further:
 * split_next() reads it again when it is its turn, and checks it.
 */
static void split_prefetch(struct vq *vq)
{
	uint16_t after = vq->last_avail + 1;

	for (; (uint16_t)(vq->desc_ahead - after) < SPLIT_DESCS_AHEAD &&
	       vq->desc_ahead != vq->avail_idx;
	     vq->desc_ahead++)
		prefetch_read(&vq->desc[guess_head(vq, vq->desc_ahead)]);
	for (; (uint16_t)(vq->buffer_ahead - after) < SPLIT_BUFFERS_AHEAD &&
	       vq->buffer_ahead != vq->avail_idx;
	     vq->buffer_ahead++)
		prefetch_buffer(
			vq, &vq->desc[guess_head(vq, vq->buffer_ahead)].addr);
}

/* Read the head of chain number @i.  Returns false if it is none. */
static bool read_head(const struct vq *vq, uint16_t i, struct vq_chain *chain)
{
	chain->head = load16(&vq->avail->ring[i & (vq->num - 1)]);
	return chain->head < vq->num;
}

/**
 * split_next() - Take the next chain the master made available
 * @vq:		Queue
 * @iov:	Room for %VQ_CHAIN_IOVS vectors, which cover the buffers
 * @chain:	The chain
 *
 * Return: 0, -EAGAIN if there is none, -EPROTO if the master broke the ring
 */
int split_next(struct vq *vq, struct iovec *iov, struct vq_chain *chain)
{
	int r;

	if (vq->avail_idx == vq->last_avail) {
		r = vq_look(vq);
		if (r)
			return r;
	}
	if (vq->kicks != VQ_KICKS_OFF)
		vq_disable_kicks(vq);
	split_prefetch(vq);

	chain->len = 0;
	chain->n_iov = 0;
	chain->n_desc = 1;
	chain->table = false;
	if (!read_head(vq, vq->last_avail, chain))
		return vq_fault(vq, RING_FAULT_HEAD);
	r = chain_walk(vq, chain->head, iov, chain);
	if (r)
		return r;
	vq->last_avail++;
	return 0;
}

/* Read a chain if it is simple.  The flags of such a descriptor say no more. */
static bool split_take_one(struct vq *vq, uint16_t i, struct iovec *iov,
			   struct vq_chain *chain)
{
	struct vring_desc d;

	if (!read_head(vq, i, chain))
		return false;
	desc_read(&vq->desc[chain->head], &d);
	return d.flags == vq->write_flag &&
	       chain_simple(vq, d.addr, d.len, iov, chain);
}

/**
 * split_take() - Take several chains that are simple: see vq_take()
 * @vq:		Queue
 * @iov:	Room for @n vectors
 * @chain:	Room for @n chains
 * @n:		How many to take at most
 *
 * What has come since split_next() last read avail idx is left to split_next().
 *
 * Return: number of chains taken
 */
unsigned int split_take(struct vq *vq, struct iovec *iov,
			struct vq_chain *chain, unsigned int n)
{
	uint16_t left = vq->avail_idx - vq->last_avail;
	unsigned int i;

	if (n > left)
		n = left;
	for (i = 0; i < n; i++)
		if (!split_take_one(vq, vq->last_avail + i, &iov[i], &chain[i]))
			break;
	if (i && vq->kicks != VQ_KICKS_OFF)
		vq_disable_kicks(vq);
	vq->last_avail += i;
	return i;
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

static void vq_put_used(struct vq *vq, uint16_t idx, struct vq_done done)
{
	struct vring_used_elem *elem =
		&vq->used_ring->ring[idx & (vq->num - 1)];

	write_once(&elem->id, htole32(done_id(done)));
	write_once(&elem->len, htole32(done_len(done)));
}

/**
 * split_update_used() - Write the completed chains to the used ring
 * @vq:		Queue; at least one chain is completed
 *
 * With IN_ORDER one entry stands for all chains of a transmit queue: it has the
 * head of the last one, and lies where the first one's would.
 *
 * Return: 1 if the master wants an interrupt, 0 if not, -ESTALE if the ring
 *	   is no longer ours
 */
int split_update_used(struct vq *vq)
{
	uint16_t old = vq->used;
	int r = split_check_fence(vq);

	if (r)
		return r;

	if (vq->one_used)
		vq_put_used(vq, old, vq->done[vq->n_done - 1]);
	else
		for (uint16_t i = 0; i < vq->n_done; i++)
			vq_put_used(vq, old + i, done_read(&vq->done[i]));
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
 * split_enable_kicks() - Ask the master for a kick with its next chain
 * @vq:		Queue; all available chains are taken
 *
 * Return: 0: the caller may sleep; 1: chains have come meanwhile; -ESTALE: the
 *	   ring is no longer ours
 */
int split_enable_kicks(struct vq *vq)
{
	int r;

	if (vq->kicks != VQ_KICKS_ON) {
		r = split_check_fence(vq);
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
	return split_has_more(vq);
}

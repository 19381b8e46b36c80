// SPDX-License-Identifier: Apache-2.0
/*
 * Serves vq.h with the packed virtqueue (VIRTIO, "Packed Virtqueues"), from the
 * device's side.
 *
 * Theory of operation
 * -------------------
 * One ring of descriptors lies in the master's memory, and both sides write it.
 * The flags AVAIL and USED of a descriptor say whose it is.  What they mean is
 * inverted with each lap around the ring, so a position is an index and a wrap
 * counter, in 16 bits: enum packed_position.  Two words beside the ring say
 * whether a side wants to be signalled, and at which position.
 *
 * The rules of split.c hold here too: each value is read once, checked, and only
 * then used; a chain becomes an array of iovecs before any buffer is touched.
 * The id of a chain is not used but given back.
 *
 * There is no index in memory that tells a successor where to go on.  So the
 * position stands in the metadata (struct ring_position), where it survives us.
 * Chains complete in the order in which they came: one position is enough.
 *
 * A used descriptor is one atomic store of its second word, which has length, id
 * and flags, so a descriptor is never half ours.  The position cannot change in
 * that same moment.  So before the store the metadata gets both the position and
 * the next one, and a successor looks at the descriptor: Position.resolve() in the
 * shared package's position.py.
 *
 * The driver must see the buffers of one packet at once, so the first of them
 * becomes used last.  We may be killed in between, with descriptors behind it
 * that are used already.  packed_start.c makes them available again; that needs
 * no more than one length, as long as each is a buffer by itself: the others
 * were filled completely, and are what they were but for their flags.
 */
#include "packed.h"

static void put_event(const struct vq *vq, uint16_t position, uint16_t flags)
{
	write_once(vq->device_event, htole32(position | (uint32_t)flags << 16));
}

/**
 * packed_check_fence() - Check that the ring is still ours
 * @vq:		Queue
 *
 * The descriptor that we use next is the one that we have taken: nothing else
 * in the ring's memory says whether another back-end has used it.
 *
 * Return: 0; -ESTALE: it is not, and nothing may be written to it any more
 */
int packed_check_fence(struct vq *vq)
{
	uint16_t flags = load16(&desc_at(vq, vq->used)->flags);

	if (vq->taken ? !is_available(flags, vq->used)
		      : is_used(flags, vq->used)) {
		vq->fault = RING_FAULT_USED_MOVED;
		return -ESTALE;
	}
	return vq_check_session(vq);
}

/**
 * packed_has_more() - Check for chains without taking one
 * @vq:		Queue
 *
 * Return: true if the descriptor where our next chain begins is available
 */
bool packed_has_more(const struct vq *vq)
{
	return is_available(load_head_flags(vq, vq->last_avail),
			    vq->last_avail);
}

/* Read the head but for its flags, each byte once. */
static void head_read(const struct packed_desc *p, uint16_t flags,
		      struct vring_desc *d)
{
	d->addr = le64toh(read_once(&p->addr));
	d->len = le32toh(read_once(&p->len));
	d->next = load16(&p->id);
	d->flags = flags;
}

/* Read a descriptor; its id goes where split rings have `next`. */
static void packed_read(const void *p, struct vring_desc *d)
{
	uint16_t id;

	desc_read(p, d);
	id = d->flags;
	d->flags = d->next;
	d->next = id;
}

/* All descriptors of a table belong to the chain, in their order. */
static int table_walk(struct vq *vq, const struct vring_desc *link,
		      struct iovec *iov, struct vq_chain *chain)
{
	const struct vring_desc *table;
	struct vring_desc d;
	uint32_t num;
	int r;

	table = indirect_table(vq, link, &num);
	if (!table)
		return -EPROTO;
	for (uint32_t i = 0; i < num; i++) {
		packed_read(&table[i], &d);
		if (d.flags & VRING_DESC_F_INDIRECT)
			return vq_fault(vq, RING_FAULT_NESTED);
		r = chain_add(vq, &d, iov, chain);
		if (r)
			return r;
	}
	return 0;
}

/* Descriptors that we do not hold: what seems to be offered behind them is not. */
static uint32_t descs_left(const struct vq *vq)
{
	return vq->num - vq->taken;
}

/*
 * Follow a chain from its head.  It ends before the descriptors that we hold, so
 * it is never longer than the ring.
 */
static int packed_walk(struct vq *vq, uint16_t flags, struct iovec *iov,
		       struct vq_chain *chain)
{
	uint32_t left = descs_left(vq);
	uint16_t at = vq->last_avail;
	struct vring_desc d;
	int r;

	if (!left)
		return vq_fault(vq, RING_FAULT_LOOP);
	head_read(desc_at(vq, at), flags, &d);
	chain->head = d.next;
	chain->n_desc = 1;
	chain->table = d.flags & VRING_DESC_F_INDIRECT;
	if (chain->table)
		return table_walk(vq, &d, iov, chain);

	for (;;) {
		r = chain_add(vq, &d, iov, chain);
		if (r || !(d.flags & VRING_DESC_F_NEXT))
			return r;
		if (chain->n_desc == left)
			return vq_fault(vq, RING_FAULT_LOOP);
		at = position_add(vq, at, 1);
		packed_read(desc_at(vq, at), &d);
		/* A table stands alone: "Indirect Flag: Scatter-Gather". */
		if (d.flags & VRING_DESC_F_INDIRECT)
			return vq_fault(vq, RING_FAULT_INDIRECT);
		/* The last descriptor has the id of the chain. */
		chain->head = d.next;
		chain->n_desc++;
	}
}

static void packed_disable_kicks(struct vq *vq)
{
	vq->kicks = VQ_KICKS_OFF;
	put_event(vq, 0, PACKED_EVENT_DISABLE);
}

/*
 * Ask for the buffer of a descriptor that comes later, as split_prefetch() does.
 * The descriptor may be one of an earlier lap: what is read is not used further.
 * The processor sees by itself that descriptors are read one after the other.
 */
static void packed_prefetch(const struct vq *vq)
{
	const struct packed_desc *d;

	if (vq->num <= PACKED_AHEAD)
		return;
	d = desc_at(vq, position_add(vq, vq->last_avail, PACKED_AHEAD));
	prefetch_buffer(vq, &d->addr);
}

/**
 * packed_next() - Take the next chain the master made available
 * @vq:		Queue
 * @iov:	Room for %VQ_CHAIN_IOVS vectors, which cover the buffers
 * @chain:	The chain
 *
 * Return: 0, -EAGAIN if there is none, -EPROTO if the master broke the ring
 */
int packed_next(struct vq *vq, struct iovec *iov, struct vq_chain *chain)
{
	uint16_t flags = load_head_flags(vq, vq->last_avail);
	int r;

	if (!is_available(flags, vq->last_avail))
		return -EAGAIN;
	if (vq->kicks != VQ_KICKS_OFF)
		packed_disable_kicks(vq);
	packed_prefetch(vq);

	chain->len = 0;
	chain->n_iov = 0;
	r = packed_walk(vq, flags, iov, chain);
	if (r)
		return r;
	vq->last_avail = position_add(vq, vq->last_avail, chain->n_desc);
	vq->taken += chain->n_desc;
	return 0;
}

/* Read a chain if it is available and simple. */
static bool packed_take_one(struct vq *vq, uint16_t at, struct iovec *iov,
			    struct vq_chain *chain)
{
	const struct packed_desc *d = desc_at(vq, at);
	/* Length, id and flags.  Acquire: see load_head_flags(). */
	uint64_t word =
		le64toh(load_acquire((const uint64_t *)(const void *)&d->len));

	/* Exactly these: available, of our direction, direct, and alone. */
	if (word >> 48 != (flags_available(at) | vq->write_flag))
		return false;
	chain->head = word >> 32;
	return chain_simple(vq, le64toh(read_once(&d->addr)), word, iov, chain);
}

/**
 * packed_take() - Take several chains that are simple: see vq_take()
 * @vq:		Queue
 * @iov:	Room for @n vectors
 * @chain:	Room for @n chains
 * @n:		How many to take at most
 *
 * Return: number of chains taken
 */
unsigned int packed_take(struct vq *vq, struct iovec *iov,
			 struct vq_chain *chain, unsigned int n)
{
	uint16_t at = vq->last_avail;
	unsigned int i;

	if (n > descs_left(vq))
		n = descs_left(vq);
	for (i = 0; i < n; i++, at = position_add(vq, at, 1))
		if (!packed_take_one(vq, at, &iov[i], &chain[i]))
			break;
	if (i && vq->kicks != VQ_KICKS_OFF)
		packed_disable_kicks(vq);
	vq->last_avail = at;
	vq->taken += i;
	return i;
}

/* Does the driver want an interrupt for the @n descriptors from @old on? */
static bool packed_wants_call(struct vq *vq, uint16_t old, uint32_t n)
{
	bool first = !vq->called;
	uint32_t event;
	uint16_t flags;

	/*
	 * The used descriptors must be visible before we read the driver's
	 * wish.  Pairs with the driver's barrier (virtio_mb() in Linux) between
	 * writing its wish and looking at the next descriptor; see split.c.
	 */
	full_fence();
	vq->called = true;
	/* Position and flags by one load: they belong together. */
	event = le32toh(read_once(vq->driver_event));
	flags = event >> 16 & 3;
	if (flags == PACKED_EVENT_DISABLE)
		return false;
	if (flags != PACKED_EVENT_DESC || !vq->event_idx)
		return true;
	/* A predecessor may have used descriptors, and ended before it called. */
	return first || position_distance(vq, old, event) < n;
}

static void put_used(const struct vq *vq, uint16_t at, struct vq_done done)
{
	uint32_t len = done_len(done);
	uint16_t write = len ? vq->write_flag : 0;

	desc_put(desc_at(vq, at), len, done_id(done), flags_used(at) | write);
}

/* How to take back what makes @n chains used, should we be killed over it. */
static uint64_t undo_of(const struct vq *vq, uint16_t last,
			const struct vq_done *done, uint16_t n)
{
	uint32_t len;

	for (uint16_t i = 0; i < n; i++)
		if (done[i].word & VQ_DONE_TABLE || done_n_desc(done[i]) > 1)
			return (uint64_t)PACKED_NO_UNDO << 32;
	len = le32toh(read_once(&desc_at(vq, last)->len));
	return (uint64_t)PACKED_UNDO << 32 | len;
}

/* A packet of one chain. */
static void put_chain(struct vq *vq, struct vq_done done)
{
	uint16_t used = vq->used;
	uint16_t next = position_add(vq, used, done_n_desc(done));

	position_store(vq, used, next);
	put_used(vq, used, done);
	/* Atomic, because worker_read_ring() reads it from another thread. */
	write_once(&vq->used, next);
}

/*
 * Make the chains of one packet used, at least two: the first one last, as the
 * driver must see all of them with it.
 */
static void put_packet(struct vq *vq, const struct vq_done *done, uint16_t n)
{
	uint16_t first = vq->used, at = first, last = first, next;

	for (uint16_t i = 0; i + 1 < n; i++)
		last = position_add(vq, last, done_n_desc(done[i]));
	next = position_add(vq, last, done_n_desc(done[n - 1]));
	if (vq->position)
		write_once(&vq->position->undo,
			   htole64(undo_of(vq, last, done, n)));
	position_store(vq, first, next);
	for (uint16_t i = 1; i < n; i++) {
		at = position_add(vq, at, done_n_desc(done[i - 1]));
		put_used(vq, at, done[i]);
	}
	put_used(vq, first, done[0]);
	/* Atomic, because worker_read_ring() reads it from another thread. */
	write_once(&vq->used, next);
}

/* One used descriptor stands for all chains: it has the id of the last one. */
static void put_batch(struct vq *vq, uint32_t n_desc)
{
	uint16_t next = position_add(vq, vq->used, n_desc);

	position_store(vq, vq->used, next);
	put_used(vq, vq->used, vq->done[vq->n_done - 1]);
	write_once(&vq->used, next);
}

/**
 * packed_update_used() - Give the completed chains back to the driver
 * @vq:		Queue; at least one chain is completed
 *
 * With IN_ORDER one used descriptor stands for all chains of a transmit queue.
 *
 * Return: 1 if the master wants an interrupt, 0 if not, -ESTALE if the ring
 *	   is no longer ours
 */
int packed_update_used(struct vq *vq)
{
	uint16_t old = vq->used, n;
	uint32_t n_desc = 0;
	int r = packed_check_fence(vq);

	if (r)
		return r;

	for (uint16_t i = 0; i < vq->n_done; i++)
		n_desc += done_n_desc(done_read(&vq->done[i]));
	if (vq->one_used)
		put_batch(vq, n_desc);
	else
		for (uint16_t i = 0; i < vq->n_done; i += n) {
			struct vq_done done = done_read(&vq->done[i]);

			n = 1;
			if (!(done.word & VQ_DONE_MORE)) {
				put_chain(vq, done);
				continue;
			}
			while (vq->done[i + n++].word & VQ_DONE_MORE)
				;
			put_packet(vq, &vq->done[i], n);
		}
	position_store(vq, vq->used, vq->used);
	vq->taken -= n_desc;
	vq->n_done = 0;
	return packed_wants_call(vq, old, n_desc);
}

/**
 * packed_enable_kicks() - Ask the master for a kick with its next chain
 * @vq:		Queue; all available chains are taken
 *
 * Return: 0: the caller may sleep; 1: chains have come meanwhile; -ESTALE: the
 *	   ring is no longer ours
 */
int packed_enable_kicks(struct vq *vq)
{
	int r;

	if (vq->kicks != VQ_KICKS_ON) {
		r = packed_check_fence(vq);
		if (r)
			return r;
		vq->kicks = VQ_KICKS_ON;
		if (vq->event_idx)
			put_event(vq, vq->last_avail, PACKED_EVENT_DESC);
		else
			put_event(vq, 0, PACKED_EVENT_ENABLE);
		/*
		 * What we ask for must be visible before we look for a chain.
		 * Pairs with the driver's barrier (virtio_mb() in Linux)
		 * between making a chain available and reading our wish.
		 */
		full_fence();
	}
	/* Chains offered before the master saw our wish have no kick. */
	return packed_has_more(vq);
}

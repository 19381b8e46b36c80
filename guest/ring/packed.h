/* SPDX-License-Identifier: Apache-2.0 */
/*
 * What packed.c and packed_start.c both need of a packed ring: its descriptors,
 * and positions in it.  packed.c tells how it works.
 */
#ifndef PACKED_H
#define PACKED_H

#include "format.h"

enum {
	PACKED_AVAIL = 1 << 7,
	PACKED_USED = 1 << 15,
	PACKED_EVENT_ENABLE = 0,
	PACKED_EVENT_DISABLE = 1,
	PACKED_EVENT_DESC = 2,
	/* How many descriptors packed_prefetch() looks ahead. */
	PACKED_AHEAD = 8
};

/* Here `id` is where a descriptor of split rings has its flags, and so on. */
struct packed_desc {
	uint64_t addr;
	uint32_t len;
	uint16_t id;
	uint16_t flags;
};

static_assert(sizeof(struct packed_desc) == 16, "VIRTIO");
static_assert(offsetof(struct packed_desc, flags) == 14, "VIRTIO");
static_assert(sizeof(struct ring_position) == 64, "one cache line");
static_assert(offsetof(struct ring_position, position) == 0x24, "layout");
static_assert(offsetof(struct ring_position, undo) == 0x28, "layout");

static inline bool position_wrap(uint16_t position)
{
	return position & PACKED_WRAP;
}

static inline uint16_t position_index(uint16_t position)
{
	return position & ~PACKED_WRAP;
}

static inline uint16_t position_add(const struct vq *vq, uint16_t position,
				    uint32_t n)
{
	uint32_t i = position_index(position) + n;

	if (i < vq->num)
		return position + n;
	return (i - vq->num) | (~position & PACKED_WRAP);
}

/* How far @to is ahead of @from; less than two laps. */
static inline uint32_t position_distance(const struct vq *vq, uint16_t from,
					 uint16_t to)
{
	uint32_t lap = vq->num;
	uint32_t a = position_index(from) + (position_wrap(from) ? 0 : lap);
	uint32_t b = position_index(to) + (position_wrap(to) ? 0 : lap);

	return (b - a + 2 * lap) % (2 * lap);
}

static inline struct packed_desc *desc_at(const struct vq *vq,
					  uint16_t position)
{
	return &vq->ring[position_index(position)];
}

/* Has the driver given us the descriptor in the lap of this position? */
static inline bool is_available(uint16_t flags, uint16_t position)
{
	bool wrap = position_wrap(position);

	return !!(flags & PACKED_AVAIL) == wrap &&
	       !!(flags & PACKED_USED) != wrap;
}

/* Has a device given it back in that lap? */
static inline bool is_used(uint16_t flags, uint16_t position)
{
	bool wrap = position_wrap(position);

	return !!(flags & PACKED_AVAIL) == wrap &&
	       !!(flags & PACKED_USED) == wrap;
}

static inline uint16_t flags_available(uint16_t position)
{
	return position_wrap(position) ? PACKED_AVAIL : PACKED_USED;
}

static inline uint16_t flags_used(uint16_t position)
{
	return position_wrap(position) ? PACKED_AVAIL | PACKED_USED : 0;
}

/*
 * Acquire: the driver writes the rest of the chain first, and the flags of its
 * head after a write barrier.  So that it is seen, it must be read after them.
 */
static inline uint16_t load_head_flags(const struct vq *vq, uint16_t position)
{
	return le16toh(load_acquire(&desc_at(vq, position)->flags));
}

/* Write length, id and flags by one store, which is atomic. */
static inline void desc_put(struct packed_desc *d, uint32_t len, uint16_t id,
			    uint16_t flags)
{
	uint64_t word = len | (uint64_t)id << 32 | (uint64_t)flags << 48;

	/*
	 * Release: the buffers, and the used descriptors behind the first of a
	 * packet, must be visible before it is.  Pairs with the driver's
	 * barrier (virtio_rmb() in Linux) between reading flags and the rest.
	 */
	store_release((uint64_t *)(void *)&d->len, htole64(word));
}

static inline void position_store(const struct vq *vq, uint16_t at,
				  uint16_t next)
{
	/*
	 * Release: of two words about one update, the first is never visible
	 * after the second, or after the descriptors.
	 */
	if (vq->position)
		store_release(&vq->position->position,
			      htole32(at | (uint32_t)next << 16));
}

#endif

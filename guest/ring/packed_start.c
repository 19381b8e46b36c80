// SPDX-License-Identifier: Apache-2.0
/*
 * The start of a packed ring: its parts, and what a predecessor that was killed
 * has left half done.  packed.c tells what the metadata has for that.
 */
#include "packed.h"

/* Is what the metadata has of a position about this very ring? */
static bool position_is_ours(const struct ring_position *p,
			     const struct ring_conf *conf)
{
	return p->desc == htole64(conf->desc) &&
	       p->driver == htole64(conf->driver) &&
	       p->device == htole64(conf->device) &&
	       p->size == htole32(conf->size);
}

/*
 * Make the descriptors of an update available again that a predecessor did not
 * finish; its first one still is.  Returns -EBADMSG if that cannot be done.
 */
static int packed_undo(const struct vq *vq, uint16_t next, uint64_t undo)
{
	uint32_t n = position_distance(vq, vq->used, next);
	uint16_t at = vq->used, last = position_add(vq, at, n - 1);

	for (uint32_t i = 1; i < n; i++) {
		struct packed_desc *d;
		uint32_t len;

		at = position_add(vq, at, 1);
		d = desc_at(vq, at);
		if (!is_used(load16(&d->flags), at))
			continue;
		if (undo >> 32 != PACKED_UNDO)
			return -EBADMSG;
		len = at == last ? undo : le32toh(read_once(&d->len));
		desc_put(d, len, load16(&d->id),
			 flags_available(at) | vq->write_flag);
	}
	return 0;
}

/* Look at what a predecessor left half done where we start. */
static int packed_finish_predecessor(const struct vq *vq,
				     const struct ring_conf *conf)
{
	uint32_t word = le32toh(read_once(&vq->position->position));
	uint16_t at = word, next = word >> 16;
	uint32_t n = position_distance(vq, at, next);

	if (!position_is_ours(vq->position, conf) || at != vq->used)
		return 0;
	/* More than a lap is none of our numbers. */
	if (!n || n > vq->num)
		return 0;
	return packed_undo(vq, next, le64toh(read_once(&vq->position->undo)));
}

/*
 * Begin our own position.  The origin is cleared first and written last: with it
 * all the rest is valid.
 */
static void packed_claim(const struct vq *vq, const struct ring_conf *conf)
{
	struct ring_position *p = vq->position;

	if (le64toh(read_once(&p->origin)) != conf->origin)
		write_once(&p->origin, 0);
	position_store(vq, vq->used, vq->used);
	write_once(&p->desc, htole64(conf->desc));
	write_once(&p->driver, htole64(conf->driver));
	write_once(&p->device, htole64(conf->device));
	write_once(&p->size, htole32(conf->size));
	write_once(&p->undo, 0);
	store_release(&p->origin, htole64(conf->origin));
}

/**
 * packed_init() - Find the parts of a ring, and start at its base
 * @vq:		Queue; what both formats have is set
 * @conf:	Where the ring lies, and its position
 *
 * Return: 0; -EINVAL: the base is outside the ring; -EFAULT: a part of the ring
 *	   does not lie in one region; -ESTALE: the ring is another's; -EBADMSG:
 *	   a predecessor was killed in the middle of an update
 */
int packed_init(struct vq *vq, const struct ring_conf *conf)
{
	int r;

	if (position_index(conf->base) >= conf->size ||
	    conf->position_addr % _Alignof(struct ring_position))
		return -EINVAL;
	vq->ring =
		ring_part(vq->mem, conf->desc, 16 * (uint64_t)conf->size, 16);
	vq->driver_event = ring_part(vq->mem, conf->driver, 4, 4);
	vq->device_event = ring_part(vq->mem, conf->device, 4, 4);
	if (!vq->ring || !vq->driver_event || !vq->device_event)
		return -EFAULT;
	vq->position = (void *)(uintptr_t)conf->position_addr;
	vq->last_avail = conf->base;
	vq->used = conf->base;
	r = packed_check_fence(vq);
	if (r || !vq->position)
		return r;
	r = packed_finish_predecessor(vq, conf);
	if (!r)
		packed_claim(vq, conf);
	return r;
}

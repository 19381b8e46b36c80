// SPDX-License-Identifier: Apache-2.0
/*
 * The driver of model.h, as VIRTIO's "Split Virtqueues" and "Packed Virtqueues"
 * have it.  It finds a device that returns a chain twice, or in another order.
 */
#include <string.h>
#include "model.h"

enum {
	DESC_NEXT = 1,
	DESC_WRITE = 2,
	DESC_INDIRECT = 4,
	DESC_AVAIL = 1 << 7,
	DESC_USED = 1 << 15,
	WRAP = 0x8000,
	WISH_ENABLE = 0,
	WISH_DISABLE = 1,
	WISH_DESC = 2
};

static void fence(void)
{
	__atomic_thread_fence(__ATOMIC_SEQ_CST);
}

static uint16_t load(const uint16_t *p)
{
	return __atomic_load_n(p, __ATOMIC_ACQUIRE);
}

static void store(uint16_t *p, uint16_t value)
{
	__atomic_store_n(p, value, __ATOMIC_RELEASE);
}

/* The index, or position, @n chains or descriptors after @at. */
static uint16_t advance(const struct driver *d, uint16_t at, uint16_t n)
{
	uint32_t i = (at & ~WRAP) + n;

	if (!d->packed)
		return at + n;
	return i < d->num ? (at & WRAP) | i : (~at & WRAP) | (i - d->num);
}

static uint16_t distance(const struct driver *d, uint16_t from, uint16_t to)
{
	int32_t n = (to & ~WRAP) - (from & ~WRAP);

	if (!d->packed)
		return to - from;
	return (to ^ from) & WRAP ? n + d->num : n;
}

static uint16_t used_flags(uint16_t at)
{
	return at & WRAP ? DESC_AVAIL | DESC_USED : 0;
}

static uint16_t offer_flags(uint16_t at)
{
	return at & WRAP ? DESC_AVAIL : DESC_USED;
}

static uint16_t *flags_at(struct driver *d, uint16_t at)
{
	return &d->desc[at & ~WRAP].word[1];
}

/* Bytes that a ring takes, in any format. */
uint32_t driver_bytes(uint16_t num)
{
	return (16 * num + 8 * (num + 1) + 2 * (num + 3) + 63) & ~63U;
}

uint64_t driver_guest(const struct driver *d, const void *part)
{
	return MODEL_GUEST + ((const uint8_t *)part - d->memory);
}

/* Lay out an empty ring, which starts at an index or a position. */
void driver_init(struct driver *d, uint32_t offset, uint16_t start)
{
	d->desc = (void *)(d->memory + offset);
	d->used = (void *)&d->desc[d->num];
	d->avail = (void *)((uint8_t *)d->used + 8 * (d->num + 1));
	d->next = d->kicked = d->last_used = start;
	for (uint16_t i = 0; i < d->num; i++) {
		d->free[i] = i;
		if (d->packed)
			d->desc[i].word[1] = used_flags(
				i < (start & ~WRAP) ? start : ~start);
	}
	d->n_free = d->room = d->num;
	if (!d->packed)
		d->avail[1] = d->used[1] = start;
	driver_ask(d, false);
}

static uint16_t take_free(struct driver *d)
{
	uint16_t i = d->free[d->free_first++ % d->num];

	if (!d->n_free--)
		model_fail("the driver has no free descriptor");
	return i;
}

static void give_free(struct driver *d, uint16_t i)
{
	d->free[(d->free_first + d->n_free++) % d->num] = i;
}

/* Describe pieces of a slot in descriptors, which lie one behind the other. */
static void put_table(struct driver *d, uint32_t slot, const uint16_t *pieces,
		      uint16_t n)
{
	struct model_desc *table = (void *)(d->memory + slot + MODEL_SLOT);
	uint16_t write = d->writable ? DESC_WRITE : 0;
	uint32_t at = slot;

	for (uint16_t i = 0; i < n; at += pieces[i++]) {
		uint16_t more = i + 1 < n ? DESC_NEXT : 0;

		table[i].addr = MODEL_GUEST + at;
		table[i].len = pieces[i];
		table[i].word[0] = d->packed ? 0 : write | more;
		table[i].word[1] = d->packed ? write : i + 1;
	}
}

static void put_split(struct driver *d, const struct model_desc *parts,
		      uint16_t n)
{
	uint16_t head = take_free(d), i = head;

	for (uint16_t k = 0; k < n; k++) {
		d->desc[i] = parts[k];
		if (k + 1 == n)
			break;
		d->link[i] = d->desc[i].word[1] = take_free(d);
		i = d->link[i];
	}
	d->avail[2 + d->next % d->num] = head;
	d->out[(d->out_first + d->n_out++) % d->num] = head;
	d->next++;
	store(&d->avail[1], d->next);
}

/* The flags of the head come last: they make the chain available. */
static void put_packed(struct driver *d, const struct model_desc *parts,
		       uint16_t n)
{
	uint16_t id = take_free(d), head = d->next;

	for (uint16_t k = 0; k < n; k++, d->next = advance(d, d->next, 1)) {
		struct model_desc *to = &d->desc[d->next & ~WRAP];

		to->addr = parts[k].addr;
		to->len = parts[k].len;
		to->word[0] = id;
		if (k)
			to->word[1] = parts[k].word[0] | offer_flags(d->next);
	}
	d->out[(d->out_first + d->n_out++) % d->num] = id;
	store(flags_at(d, head), parts[0].word[0] | offer_flags(head));
}

static uint16_t last_out(const struct driver *d)
{
	return d->out[(d->out_first + d->n_out - 1) % d->num];
}

/* Offer pieces of a slot as a chain; there must be room for it. */
void driver_offer(struct driver *d, uint32_t slot, const uint16_t *pieces,
		  uint16_t n, bool indirect)
{
	struct model_desc parts[MODEL_PIECES] = {0};
	uint32_t len = 0;
	uint16_t n_desc = indirect ? 1 : n;

	for (uint16_t i = 0; i < n; len += pieces[i++]) {
		parts[i].addr = MODEL_GUEST + slot + len;
		parts[i].len = pieces[i];
		parts[i].word[0] = (d->writable ? DESC_WRITE : 0) |
				   (i + 1 < n ? DESC_NEXT : 0);
	}
	if (indirect) {
		put_table(d, slot, pieces, n);
		parts[0].addr = MODEL_GUEST + slot + MODEL_SLOT;
		parts[0].len = 16 * n;
		parts[0].word[0] = DESC_INDIRECT;
	}
	if (d->packed)
		put_packed(d, parts, n_desc);
	else
		put_split(d, parts, n_desc);
	d->room -= n_desc;
	d->chain[last_out(d)] = (struct model_chain){slot, len, n_desc};
}

bool driver_must_kick(struct driver *d)
{
	uint16_t old = d->kicked, n = distance(d, old, d->next), event;

	d->kicked = d->next;
	/* What is offered is visible before we read what the device wants. */
	fence();
	if (d->packed) {
		event = load(&d->used[0]);
		if (load(&d->used[1]) != WISH_DESC)
			return load(&d->used[1]) == WISH_ENABLE;
		/* An event of the past is less than a lap behind. */
		return distance(d, old, event) < n;
	}
	if (!d->event_idx)
		return !load(&d->used[0]);
	event = load(&d->used[2 + 4 * d->num]);
	return (uint16_t)(event - old) < n;
}

/* Say whether a call is wanted.  Returns true if there is no need to wait. */
bool driver_ask(struct driver *d, bool wanted)
{
	d->asked = wanted;
	if (d->packed) {
		d->avail[0] = d->last_used;
		d->avail[1] = wanted ? WISH_ENABLE : WISH_DISABLE;
		if (wanted && d->event_idx)
			d->avail[1] = WISH_DESC;
	} else {
		d->avail[0] = !wanted;
		d->avail[2 + d->num] = d->last_used - !wanted;
	}
	/* The wish is visible before we look whether something is used. */
	fence();
	return driver_has_used(d);
}

bool driver_has_used(struct driver *d)
{
	const uint16_t both = DESC_AVAIL | DESC_USED;

	if (d->batch)
		return true;
	if (!d->packed)
		return load(&d->used[1]) != d->last_used;
	return (load(flags_at(d, d->last_used)) & both) ==
	       used_flags(d->last_used);
}

/* Read the next used entry: how many chains it returns, and the last one's length. */
static void read_used(struct driver *d)
{
	const struct model_desc *desc = &d->desc[d->last_used & ~WRAP];
	const uint16_t *entry = &d->used[2 + d->last_used % d->num * 4];
	uint32_t id = d->packed ? desc->word[0]
				: entry[0] | (uint32_t)entry[1] << 16;
	uint32_t n = 0;

	d->batch_len = desc->len;
	if (!d->packed)
		d->batch_len = entry[2] | (uint32_t)entry[3] << 16;
	/* Only a device that writes says a length; what is there is not ours. */
	if (d->packed && !(load(flags_at(d, d->last_used)) & DESC_WRITE))
		d->batch_len = 0;
	while (n < d->n_out && d->out[(d->out_first + n) % d->num] != id)
		n++;
	if (n == d->n_out)
		model_fail("a chain comes back that the device does not have");
	if (n && !d->in_order)
		model_fail("a chain comes back before its turn");
	d->batch = n + 1;
	if (!d->packed && (uint16_t)(load(&d->used[1]) - d->last_used) <= n)
		model_fail("used idx counts fewer chains than come back");
}

static void free_chain(struct driver *d, uint16_t id, uint16_t n_desc)
{
	d->room += n_desc;
	give_free(d, id);
	for (; !d->packed && n_desc > 1; n_desc--) {
		id = d->link[id];
		give_free(d, id);
	}
}

/* Take back the oldest chain, if it is used. */
bool driver_collect(struct driver *d, struct model_chain *chain, uint32_t *len)
{
	uint16_t id;

	if (!d->batch) {
		if (!driver_has_used(d))
			return false;
		read_used(d);
	}
	id = d->out[d->out_first++ % d->num];
	d->n_out--;
	*chain = d->chain[id];
	*len = --d->batch ? 0 : d->batch_len;
	d->last_used = advance(d, d->last_used, d->packed ? chain->n_desc : 1);
	free_chain(d, id, chain->n_desc);
	return true;
}

// SPDX-License-Identifier: Apache-2.0
/*
 * The fuzzer's master: what it writes into its rings, by the rules or not.
 */
#include <string.h>
#include "fuzz.h"

/* The second and the third lie side by side, for the master. */
const struct mem_region fuzz_layout[FUZZ_REGIONS] = {
	{FUZZ_RING, 0x1000, 0},
	{0x10000, 0x1000, 0},
	{0x11000, 0x1000, 0},
	{UINT64_MAX - 0x1ffff, 0x20000, 0},
};

/* An address; many are next to the start or the end of a region. */
static uint64_t fuzz_addr(struct fuzz *f)
{
	uint8_t pick = fuzz_byte(f);
	const struct mem_region *r = &fuzz_layout[pick % FUZZ_REGIONS];

	switch (pick >> 2 & 3) {
	case 0:
		return r->guest_addr + fuzz_byte(f) * 16;
	case 1:
		return r->guest_addr + r->size - fuzz_byte(f);
	case 2:
		return r->guest_addr + fuzz_word(f) % r->size;
	default:
		return (uint64_t)fuzz_word(f) << 48 | fuzz_word(f);
	}
}

uint32_t fuzz_len(struct fuzz *f)
{
	uint8_t pick = fuzz_byte(f);

	if (pick < 0x40)
		return pick;
	if (pick < 0x80)
		return (pick & 0xf) * 16;
	if (pick < 0xfe)
		return fuzz_word(f);
	return (uint32_t)fuzz_word(f) << 16 | fuzz_word(f);
}

static void fuzz_put_desc(struct fuzz *f, uint8_t *at)
{
	uint64_t addr = fuzz_addr(f);
	uint32_t len = fuzz_len(f);
	uint16_t word[2];

	word[0] = fuzz_byte(f) & 7;
	word[1] = fuzz_byte(f) % 80;
	if (f->packed) { /* id, and flags: often as another lap has them */
		uint16_t id = word[1];

		word[1] = word[0] | (id & 1 ? FUZZ_AVAIL : 0) |
			  (id & 2 ? FUZZ_USED : 0);
		word[0] = id;
	}
	memcpy(at, &addr, sizeof(addr));
	memcpy(at + 8, &len, sizeof(len));
	memcpy(at + 12, word, sizeof(word));
}

void fuzz_put_word(uint8_t *at, uint16_t value)
{
	memcpy(at, &value, sizeof(value));
}

uint16_t fuzz_get_word(const uint8_t *at)
{
	uint16_t value;

	memcpy(&value, at, sizeof(value));
	return value;
}

/* Where the parts of a ring are, from its start. */
uint32_t fuzz_avail(const struct fuzz *f)
{
	return 16 * f->conf[0].size;
}

uint32_t fuzz_used(const struct fuzz *f)
{
	if (f->packed)
		return fuzz_avail(f) + 4;
	return (fuzz_avail(f) + 6 + 2 * f->conf[0].size + 3) & ~3U;
}

static uint16_t fuzz_wrap(const struct fuzz *f, uint16_t position, uint32_t n)
{
	uint32_t i = (position & 0x7fff) + n, num = f->conf[0].size;

	return i < num ? position + n : (i - num) | (~position & 0x8000);
}

static uint8_t *fuzz_flags(struct fuzz *f, int ring, uint16_t position)
{
	return fuzz_ring(f, ring) + 16 * (position & 0x7fff) + 14;
}

/* Make the next descriptor of a packed ring available, whatever is in it. */
static void fuzz_offer_packed(struct fuzz *f, int ring, uint16_t id)
{
	uint16_t at = f->next[ring];
	uint8_t *flags = fuzz_flags(f, ring, at);

	fuzz_put_word(flags - 2, id);
	fuzz_put_word(flags, (fuzz_get_word(flags) & 7) |
				     (at & 0x8000 ? FUZZ_AVAIL : FUZZ_USED));
	f->next[ring] = fuzz_wrap(f, at, 1);
}

/* Where the driver puts a descriptor that it then offers. */
static uint16_t fuzz_slot(const struct fuzz *f, int ring, uint16_t slot)
{
	return f->packed ? f->next[ring] & 0x7fff : slot;
}

/* Make a chain available, as a driver does. */
static void fuzz_offer(struct fuzz *f, int ring, uint16_t head)
{
	uint8_t *avail = fuzz_ring(f, ring) + fuzz_avail(f);
	uint16_t idx = fuzz_get_word(avail + 2);
	uint16_t slot = idx & (f->conf[0].size - 1);

	if (f->packed) {
		fuzz_offer_packed(f, ring, head);
		return;
	}
	fuzz_put_word(avail + 4 + 2 * slot, head);
	fuzz_put_word(avail + 2, idx + 1);
}

void fuzz_scribble(struct fuzz *f)
{
	uint8_t what = fuzz_byte(f);
	uint8_t *ring = fuzz_ring(f, what & 1);
	uint32_t num = f->conf[0].size;

	switch (what >> 1 & 7) {
	case 0:
	case 1:
	case 2:
		fuzz_put_desc(f, ring + 16 * (fuzz_byte(f) % num));
		break;
	case 3: /* tables are at the start of the second region */
		fuzz_put_desc(f, (uint8_t *)mem_at(&f->mem, 0x10000, 0x1000) +
					 16 * (fuzz_byte(f) % 64));
		break;
	case 4:
	case 5:
		fuzz_offer(f, what & 1, fuzz_byte(f) % (num + 1));
		break;
	case 6:
		fuzz_put_word(ring + 2 * (fuzz_word(f) % (FUZZ_TX / 2)),
			      fuzz_word(f));
		break;
	default:
		if (what == 0xff)
			f->meta.session++;
		fuzz_put_word(ring + fuzz_avail(f) + (what >> 4 & 2),
			      fuzz_byte(f));
	}
}

static void fuzz_put(const struct fuzz *f, uint8_t *at, uint64_t addr,
		     uint32_t len, uint16_t flags, uint16_t next)
{
	memcpy(at, &addr, sizeof(addr));
	memcpy(at + 8, &len, sizeof(len));
	fuzz_put_word(at + 12, f->packed ? next : flags);
	fuzz_put_word(at + 14, f->packed ? flags : next);
}

/* Offer a correct chain: one buffer, or a table of many small ones. */
void fuzz_good(struct fuzz *f)
{
	const struct mem_region *big = &fuzz_layout[FUZZ_REGIONS - 1];
	uint8_t what = fuzz_byte(f);
	uint16_t write = what & 1 ? 0 : 2;
	uint16_t slot = fuzz_slot(f, what & 1, fuzz_byte(f) % f->conf[0].size);
	uint8_t *at = fuzz_ring(f, what & 1) + 16 * slot;
	uint32_t len = fuzz_len(f) & 0x3ff, n = len ? len : 1024;
	uint8_t *table = mem_at(&f->mem, big->guest_addr, 16 * n);

	if (what & 2) {
		fuzz_put(f, at, big->guest_addr + 0x8000, len, write, 0);
	} else {
		fuzz_put(f, at, big->guest_addr, 16 * n, 4, 0);
		for (uint32_t i = 0; i < n; i++)
			fuzz_put(f, table + 16 * i,
				 big->guest_addr + 0x8000 + i, what >> 6,
				 i + 1 < n ? write | 1 : write, i + 1);
	}
	fuzz_offer(f, what & 1, slot);
}

/* Can the driver offer no buffer, because the device has not used any? */
static bool fuzz_is_full(const struct fuzz *f, uint16_t avail)
{
	const struct vq *vq = &f->rx.q.vq;

	if (f->packed)
		return f->next[RING_RX] == fuzz_wrap(f, vq->used, vq->num);
	return (uint16_t)(avail - vq->used) >= vq->num;
}

/* Fill the receive ring with buffers of 512 bytes, or post tables of 700. */
void fuzz_post(struct fuzz *f, bool tables)
{
	const struct mem_region *big = &fuzz_layout[FUZZ_REGIONS - 1];
	const uint8_t *idx = fuzz_ring(f, RING_RX) + fuzz_avail(f) + 2;
	uint8_t *table = mem_at(&f->mem, big->guest_addr, 16 * 700);
	uint32_t num = f->conf[0].size, n = tables && num > 8 ? 8 : num;

	for (uint16_t i = 0; tables && i < 700; i++)
		fuzz_put(f, table + 16 * i, big->guest_addr + 0x8000 + i, 1,
			 i < 699 ? 3 : 2, i + 1);
	for (uint32_t i = 0; i < n; i++) {
		uint16_t avail = fuzz_get_word(idx);
		uint16_t slot = fuzz_slot(f, RING_RX, avail & (num - 1));
		uint8_t *at = fuzz_ring(f, RING_RX) + 16 * slot;

		if (fuzz_is_full(f, avail))
			break;
		if (tables)
			fuzz_put(f, at, big->guest_addr, 16 * 700, 4, 0);
		else
			fuzz_put(f, at, big->guest_addr + 0x8000, 512, 2, 0);
		fuzz_offer(f, RING_RX, slot);
	}
}

/* Empty a ring that goes on at its used index; return that. */
static uint16_t fuzz_empty_split(struct fuzz *f, int ring)
{
	uint8_t *at = fuzz_ring(f, ring);
	uint16_t idx = fuzz_get_word(at + fuzz_used(f) + 2);

	fuzz_put_word(at + fuzz_avail(f) + 2, idx);
	return idx;
}

/* Empty a packed ring: all before its position is used.  Return that. */
static uint16_t fuzz_empty_packed(struct fuzz *f, int ring)
{
	uint16_t at = fuzz_queue(f, ring)->vq.used;
	uint16_t num = f->conf[ring].size;

	/* The first start is where fuzz_init() says. */
	if (!fuzz_queue(f, ring)->vq.ring)
		at = f->next[ring];
	for (uint16_t i = 0; i < num; i++) {
		bool wrap = !!(at & 0x8000) == (i < (at & 0x7fff));

		fuzz_put_word(fuzz_flags(f, ring, i),
			      wrap ? FUZZ_AVAIL | FUZZ_USED : 0);
	}
	f->next[ring] = at;
	return at;
}

/* Empty a ring, for a successor; return where that starts. */
uint16_t fuzz_empty(struct fuzz *f, int ring)
{
	return f->packed ? fuzz_empty_packed(f, ring)
			 : fuzz_empty_split(f, ring);
}

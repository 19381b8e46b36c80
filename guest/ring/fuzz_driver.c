// SPDX-License-Identifier: Apache-2.0
/*
 * The fuzzer's master: its memory, and what it writes into its rings against the
 * rules.  What it does by the rules is in fuzz_packet.c.
 */
#include <stdlib.h>
#include <string.h>
#include "fuzz.h"

/* The second and the third lie side by side, for the master. */
static const struct mem_region fuzz_regions[FUZZ_REGIONS] = {
	{FUZZ_RING, 2 * FUZZ_RING_LEN, 0},
	{0x10000, 0x1000, 0},
	{0x11000, 0x1000, 0},
	{UINT64_MAX - 0x1ffff, 0x20000, 0},
};

static uint64_t fuzz_memory(size_t size)
{
	void *p = aligned_alloc(4096, size);

	if (!p)
		abort();
	return (uintptr_t)p;
}

/* Large rings lie elsewhere: here they would reach into the second region. */
static void fuzz_layout_rings(struct fuzz *f)
{
	uint32_t end = fuzz_used(f) + 6 + 8 * f->conf[0].size;

	f->ring_len = FUZZ_RING_LEN;
	if (end <= f->ring_len)
		return;
	f->ring_len = (end + 4095) & ~4095U;
	f->layout[0].guest_addr = 1ULL << 32;
	f->layout[0].size = 2 * f->ring_len;
	f->layout[0].host_addr = fuzz_memory(f->layout[0].size);
}

/**
 * fuzz_layout() - Lay out the master's memory, all of it zeros
 * @f:		Fuzzer; its rings' size and format are set
 *
 * Memory is kept for the next input, as page faults would take most of the time;
 * but not that of large rings, which is the caller's to free.
 */
void fuzz_layout(struct fuzz *f)
{
	static uint64_t memory[FUZZ_REGIONS];

	for (int i = 0; i < FUZZ_REGIONS; i++) {
		if (!memory[i])
			memory[i] = fuzz_memory(fuzz_regions[i].size);
		f->layout[i] = fuzz_regions[i];
		f->layout[i].host_addr = memory[i];
	}
	fuzz_layout_rings(f);
	for (int i = 0; i < FUZZ_REGIONS; i++)
		memset((void *)(uintptr_t)f->layout[i].host_addr, 0,
		       f->layout[i].size);
}

/* An address; many are next to the start or the end of a region. */
static uint64_t fuzz_addr(struct fuzz *f)
{
	uint8_t pick = fuzz_byte(f);
	const struct mem_region *r = &f->layout[pick % FUZZ_REGIONS];

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

uint16_t fuzz_wrap(const struct fuzz *f, uint16_t position, uint32_t n)
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

/* Make a chain available, as a driver does. */
void fuzz_offer(struct fuzz *f, int ring, uint16_t head)
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
		fuzz_put_word(ring + 2 * (fuzz_word(f) % (f->ring_len / 2)),
			      fuzz_word(f));
		break;
	default:
		if (what == 0xff)
			f->meta.session++;
		fuzz_put_word(ring + fuzz_avail(f) + (what >> 4 & 2),
			      fuzz_byte(f));
	}
}

void fuzz_put(const struct fuzz *f, uint8_t *at, uint64_t addr, uint32_t len,
	      uint16_t flags, uint16_t next)
{
	memcpy(at, &addr, sizeof(addr));
	memcpy(at + 8, &len, sizeof(len));
	fuzz_put_word(at + 12, f->packed ? next : flags);
	fuzz_put_word(at + 14, f->packed ? flags : next);
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

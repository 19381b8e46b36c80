/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The state of the fuzzer, and what its master does with a ring: fuzz_driver.c.
 */
#ifndef FUZZ_H
#define FUZZ_H

#include "rx.h"
#include "tx.h"

enum {
	FUZZ_REGIONS = 4,
	FUZZ_STEPS = 2000,
	FUZZ_RING = 0x1000, /* guest address of the rings */
	FUZZ_TX = 0x800, /* the transmit ring's, from there */
	FUZZ_AVAIL = 1 << 7, /* flags of a packed ring */
	FUZZ_USED = 1 << 15
};

extern const struct mem_region fuzz_layout[FUZZ_REGIONS];

struct fuzz {
	const uint8_t *data;
	size_t left;
	struct mem mem;
	struct ring_conf conf[RING_COUNT];
	uint32_t doorbell;
	struct ring_meta meta;
	bool packed;
	struct ring_position position[RING_COUNT];
	uint16_t next[RING_COUNT]; /* packed: where the driver offers */
	struct tx tx;
	struct rx rx;
	bool dead[RING_COUNT];
	uint32_t interrupt;
	uint8_t error; /* of the TAP's next call */
	uint8_t scribbles; /* changes during it */
	uint8_t loads; /* so many more, then the master acts; 0: never */
	bool meddled; /* it has acted after a load */
	uint32_t packet; /* length of the TAP's next packet */
	uint32_t burst; /* packets of that length behind it */
	int call_fd; /* eventfd, or -1 */
};

static inline uint8_t fuzz_byte(struct fuzz *f)
{
	if (!f->left)
		return 0;
	f->left--;
	return *f->data++;
}

static inline uint16_t fuzz_word(struct fuzz *f)
{
	uint16_t high = fuzz_byte(f);

	return high << 8 | fuzz_byte(f);
}

static inline uint8_t *fuzz_ring(struct fuzz *f, int ring)
{
	return (uint8_t *)mem_at(&f->mem, FUZZ_RING, 0x1000) +
	       (ring == RING_TX ? FUZZ_TX : 0);
}

static inline struct net_queue *fuzz_queue(struct fuzz *f, int ring)
{
	return ring == RING_RX ? &f->rx.q : &f->tx.q;
}

uint32_t fuzz_len(struct fuzz *f);
uint16_t fuzz_get_word(const uint8_t *at);
void fuzz_put_word(uint8_t *at, uint16_t value);
uint32_t fuzz_avail(const struct fuzz *f);
uint32_t fuzz_used(const struct fuzz *f);
void fuzz_scribble(struct fuzz *f);
void fuzz_good(struct fuzz *f);
void fuzz_post(struct fuzz *f, bool tables);
uint16_t fuzz_empty(struct fuzz *f, int ring);

#endif

/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The state of the fuzzer, and what its master does with a ring: fuzz_driver.c,
 * fuzz_packet.c.
 */
#ifndef FUZZ_H
#define FUZZ_H

#include "rx.h"
#include "tx.h"

enum {
	FUZZ_REGIONS = 4, /* of the first, the rings', the size varies */
	FUZZ_STEPS = 2000,
	FUZZ_RING = 0x1000, /* guest address of the rings */
	FUZZ_RING_LEN = 0x800, /* of each, at least; two follow each other */
	FUZZ_BIG = FUZZ_REGIONS - 1, /* region for tables and data: */
	FUZZ_DATA = 0x8000, /* where data begins, behind tables */
	FUZZ_AVAIL = 1 << 7, /* flags of a packed ring */
	FUZZ_USED = 1 << 15
};

struct fuzz {
	const uint8_t *data;
	size_t left;
	struct mem_region layout[FUZZ_REGIONS];
	uint32_t ring_len;
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
	return (uint8_t *)(uintptr_t)f->layout[0].host_addr +
	       (ring == RING_TX ? f->ring_len : 0);
}

/* A place in the region for tables and data. */
static inline uint8_t *fuzz_big(struct fuzz *f, uint32_t offset)
{
	return (uint8_t *)(uintptr_t)f->layout[FUZZ_BIG].host_addr + offset;
}

static inline uint64_t fuzz_big_addr(const struct fuzz *f, uint32_t offset)
{
	return f->layout[FUZZ_BIG].guest_addr + offset;
}

static inline struct net_queue *fuzz_queue(struct fuzz *f, int ring)
{
	return ring == RING_RX ? &f->rx.q : &f->tx.q;
}

void fuzz_layout(struct fuzz *f);
uint32_t fuzz_len(struct fuzz *f);
uint16_t fuzz_get_word(const uint8_t *at);
void fuzz_put_word(uint8_t *at, uint16_t value);
uint32_t fuzz_avail(const struct fuzz *f);
uint32_t fuzz_used(const struct fuzz *f);
void fuzz_put(const struct fuzz *f, uint8_t *at, uint64_t addr, uint32_t len,
	      uint16_t flags, uint16_t next);
uint16_t fuzz_wrap(const struct fuzz *f, uint16_t position, uint32_t n);
void fuzz_offer(struct fuzz *f, int ring, uint16_t head);
void fuzz_scribble(struct fuzz *f);
void fuzz_good(struct fuzz *f);
void fuzz_post(struct fuzz *f, bool tables);
void fuzz_fill(struct fuzz *f);
void fuzz_udp(struct fuzz *f);
uint16_t fuzz_empty(struct fuzz *f, int ring);

#endif

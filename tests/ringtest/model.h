/* SPDX-License-Identifier: Apache-2.0 */
/*
 * A driver of one virtqueue, in either format and of any size, for model.c.  It
 * shares no code with the ring code, nor with master.h.  The host must be
 * little-endian.
 */
#ifndef MODEL_H
#define MODEL_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

enum {
	MODEL_SIZE = 1024, /* largest ring */
	MODEL_PIECES = 8, /* descriptors in an indirect table */
	MODEL_SLOT = 4096, /* a chain's buffers, ... */
	MODEL_TABLE = 16 * MODEL_PIECES /* ... and room for its table behind */
};

#define MODEL_GUEST (1ULL << 32)

struct model_desc {
	uint64_t addr;
	uint32_t len;
	uint16_t word[2]; /* flags and next; packed: id and flags */
};

/* What the driver keeps of a chain, by its head or id. */
struct model_chain {
	uint32_t slot; /* offset in the memory */
	uint32_t len;
	uint16_t n_desc;
};

struct driver {
	uint8_t *memory;
	uint16_t num;
	bool packed;
	bool event_idx;
	bool in_order; /* one used entry may stand for several chains */
	bool writable; /* the device writes */
	struct model_desc *desc;
	uint16_t *avail; /* flags, idx, ring, used_event; packed: our wish */
	uint16_t *used; /* ... packed: the device's wish */
	uint16_t next; /* where the next chain goes: an index, or a position */
	uint16_t kicked; /* `next` when we last thought about a kick */
	uint16_t last_used;
	uint16_t batch; /* chains left that one used entry has returned */
	uint32_t batch_len; /* bytes in the last of them */
	bool asked; /* for a call with the next used chain */
	/* Free descriptors or, packed, ids, in the order in which they came back. */
	uint16_t free[MODEL_SIZE];
	uint32_t free_first, n_free;
	uint16_t room; /* descriptors */
	/* Heads or ids of the chains that the device has, oldest first. */
	uint16_t out[MODEL_SIZE];
	uint32_t out_first, n_out;
	uint16_t link[MODEL_SIZE]; /* split: the next descriptor of a chain */
	struct model_chain chain[MODEL_SIZE];
};

uint32_t driver_bytes(uint16_t num);
void driver_init(struct driver *d, uint32_t offset, uint16_t start);
uint64_t driver_guest(const struct driver *d, const void *part);
void driver_offer(struct driver *d, uint32_t slot, const uint16_t *pieces,
		  uint16_t n, bool indirect);
bool driver_must_kick(struct driver *d);
bool driver_ask(struct driver *d, bool wanted);
bool driver_has_used(struct driver *d);
bool driver_collect(struct driver *d, struct model_chain *chain, uint32_t *len);
void model_fail(const char *what);

#endif

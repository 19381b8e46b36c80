/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The master: its memory, and the driver of one virtqueue, in a file for each
 * format.  The host must be little-endian.
 */
#ifndef MASTER_H
#define MASTER_H

#include <stdalign.h>
#include <stdbool.h>
#include <stdint.h>
#include <string.h>
#include "vq.h"

enum {
	MASTER_NUM = 8,
	MASTER_GUEST = 0x100000, /* guest address of the memory */
	MASTER_NEXT = 1,
	MASTER_WRITE = 2,
	MASTER_INDIRECT = 4,
	MASTER_BUFFERS = 0x400, /* offset of the buffers, ... */
	MASTER_BUFFER = 0x40, /* ... one for each descriptor, so long */
	MASTER_TABLE = 0x800, /* offset of an indirect table */
	MASTER_SIZE = 0x1000
};

/* A descriptor of a split ring. */
struct master_desc {
	uint64_t addr;
	uint32_t len;
	uint16_t flags;
	uint16_t next;
};

struct master {
	alignas(4096) uint8_t memory[MASTER_SIZE];
	struct mem mem;
	struct vq vq;
	bool event_idx;
	uint16_t avail_idx;
	uint16_t kicked; /* avail_idx when we last thought about a kick */
	uint16_t last_used;
	uint16_t published; /* packed: the first that the device cannot see, */
	uint16_t first_flags; /* ... and what it has beside AVAIL or USED */
};

static inline uint64_t master_guest(size_t offset)
{
	return MASTER_GUEST + offset;
}

static inline uint64_t master_buffer(uint16_t i)
{
	return master_guest(MASTER_BUFFERS + (size_t)i * MASTER_BUFFER);
}

#ifdef PACKED
#include "master_packed.h"
#else
#include "master_split.h"
#endif

#endif

/* SPDX-License-Identifier: Apache-2.0 */
#ifndef MEM_H
#define MEM_H

#include <sys/uio.h>
#include "ring.h"

/* The master's memory: sorted by guest address, without overlaps. */
struct mem {
	uint32_t n;
	struct mem_region region[RING_MAX_REGIONS];
};

int mem_set(struct mem *m, const struct mem_region *regions, uint32_t n);
const struct mem_region *mem_find(const struct mem *m, uint64_t addr);
void *mem_at(const struct mem *m, uint64_t addr, uint64_t len);
int mem_iov(const struct mem *m, uint64_t addr, uint64_t len, struct iovec *iov,
	    unsigned int room);

#endif

// SPDX-License-Identifier: Apache-2.0
/*
 * Guest-physical addresses to pointers: the only place where an address of
 * the master becomes one of ours.  All bounds are checked by subtraction, so
 * that no sum can wrap.
 */
#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include "mem.h"

static int mem_compare(const void *a, const void *b)
{
	uint64_t x = ((const struct mem_region *)a)->guest_addr;
	uint64_t y = ((const struct mem_region *)b)->guest_addr;

	return (x > y) - (x < y);
}

static bool mem_region_wraps(const struct mem_region *r)
{
	return !r->size || !r->host_addr ||
	       r->size - 1 > UINT64_MAX - r->guest_addr ||
	       r->size - 1 > UINTPTR_MAX - r->host_addr;
}

/**
 * mem_set() - Replace the table of regions
 * @m:		Table; on an error it is empty
 * @regions:	Regions in any order
 * @n:		Number of @regions
 *
 * Return: 0, -E2BIG, or -EINVAL: a region is empty, wraps, or overlaps
 */
int mem_set(struct mem *m, const struct mem_region *regions, uint32_t n)
{
	m->n = 0;
	if (n > RING_MAX_REGIONS)
		return -E2BIG;
	if (!n)
		return 0;

	memcpy(m->region, regions, n * sizeof(*regions));
	qsort(m->region, n, sizeof(*regions), mem_compare);
	for (uint32_t i = 0; i < n; i++) {
		const struct mem_region *r = &m->region[i];

		if (mem_region_wraps(r))
			return -EINVAL;
		if (i && r->guest_addr - r[-1].guest_addr < r[-1].size)
			return -EINVAL;
	}
	m->n = n;
	return 0;
}

static const struct mem_region *mem_find(const struct mem *m, uint64_t addr)
{
	uint32_t low = 0, high = m->n;

	while (low < high) {
		uint32_t mid = low + (high - low) / 2;
		const struct mem_region *r = &m->region[mid];

		if (addr < r->guest_addr)
			high = mid;
		else if (addr - r->guest_addr < r->size)
			return r;
		else
			low = mid + 1;
	}
	return NULL;
}

/**
 * mem_at() - Pointer to a range which lies in one region
 * @m:		Regions
 * @addr:	Guest-physical address
 * @len:	Length; not 0
 *
 * Return: pointer, NULL unless the whole range is inside one region
 */
void *mem_at(const struct mem *m, uint64_t addr, uint64_t len)
{
	const struct mem_region *r = mem_find(m, addr);
	uint64_t offset;

	if (!r || !len)
		return NULL;
	offset = addr - r->guest_addr;
	if (len > r->size - offset)
		return NULL;
	return (void *)(uintptr_t)(r->host_addr + offset);
}

/**
 * mem_iov() - Vectors for a buffer, which may go on from region to region
 * @m:		Regions
 * @addr:	Guest-physical address; not looked at if @len is 0
 * @len:	Length
 * @iov:	Where to put the vectors
 * @room:	Number of free @iov
 *
 * Return: number of vectors, -EFAULT if a byte is in no region, -E2BIG
 */
int mem_iov(const struct mem *m, uint64_t addr, uint64_t len, struct iovec *iov,
	    unsigned int room)
{
	int n = 0;

	if (len && len - 1 > UINT64_MAX - addr)
		return -EFAULT;
	while (len) {
		const struct mem_region *r = mem_find(m, addr);
		uint64_t offset, part;

		if (!r)
			return -EFAULT;
		if (!room--)
			return -E2BIG;
		offset = addr - r->guest_addr;
		part = len < r->size - offset ? len : r->size - offset;
		iov[n].iov_base = (void *)(uintptr_t)(r->host_addr + offset);
		iov[n].iov_len = part;
		n++;
		addr += part;
		len -= part;
	}
	return n;
}

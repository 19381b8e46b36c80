// SPDX-License-Identifier: Apache-2.0
/*
 * Turns guest-physical addresses into pointers.  No other file does, so all of
 * the master's addresses are checked here.  Bounds are checked by subtraction:
 * a sum of an address and a length could wrap.
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

/* The last byte counts: a region may end where the address space does. */
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
 * Return: 0; -E2BIG: too many; -EINVAL: a region is empty, wraps, or overlaps
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

/**
 * mem_find() - Find the region of an address
 * @m:		Regions
 * @addr:	Guest-physical address
 *
 * Return: region; NULL if there is none
 */
const struct mem_region *mem_find(const struct mem *m, uint64_t addr)
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
 * mem_at() - Find a range that must lie in one region
 * @m:		Regions
 * @addr:	Guest-physical address
 * @len:	Length; not 0
 *
 * Return: pointer; NULL if the range does not lie in one region
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
 * mem_iov() - Find a buffer, which may go on from one region to the next
 * @m:		Regions
 * @addr:	Guest-physical address; not looked at if @len is 0
 * @len:	Length
 * @iov:	Where to put the vectors
 * @room:	Number of free @iov
 *
 * Return: number of vectors; -EFAULT: a byte is in no region; -E2BIG: @room is
 *	   too small
 */
int mem_iov(const struct mem *m, uint64_t addr, uint64_t len, struct iovec *iov,
	    unsigned int room)
{
	int n = 0;

	/* A buffer that wraps could go on in a region at guest address 0. */
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
		/* mem_find() has seen that offset is less than the size. */
		part = len < r->size - offset ? len : r->size - offset;
		iov[n].iov_base = (void *)(uintptr_t)(r->host_addr + offset);
		iov[n].iov_len = part;
		n++;
		addr += part;
		len -= part;
	}
	return n;
}

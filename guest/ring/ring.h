/* SPDX-License-Identifier: Apache-2.0 */
#ifndef RING_H
#define RING_H

#include <stdbool.h>
#include <stdint.h>
#include "barrier.h"
#include "ring_api.h"

#define RING_CACHELINE 64

/*
 * Only the worker writes its counters, so load and store need not be one step.
 * Atomic, because worker_read_ring() reads them from another thread.
 */
#define RING_COUNT_ADD(counter, n) write_once(&(counter), (counter) + (n))

/*
 * Ask for a cache line before it is used.  This is no access, so the address may
 * be wrong.  prefetch_write() takes the line from the other processors' caches,
 * too.  It is not __builtin_prefetch(): that only reads, unless GCC may use an
 * instruction that the first x86-64 processors take as one without effect.
 */
static inline void prefetch_read(const void *p)
{
	__builtin_prefetch(p);
}

static inline void prefetch_write(const void *p)
{
#ifdef __x86_64__
	__asm__ volatile("prefetchw %0" ::"m"(*(const char *)p));
#else
	__builtin_prefetch(p, 1);
#endif
}

#endif

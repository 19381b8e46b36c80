/* SPDX-License-Identifier: Apache-2.0 */
/*
 * barrier.h for the fuzzer: the master may act after each load.
 *
 * The compiler reads this first (-include), so that barrier.h defines nothing.
 */
#ifndef BARRIER_H
#define BARRIER_H

#include <stddef.h>

void fuzz_loaded(const void *p, size_t size);

#define fuzz_load(p, order)                                          \
	({                                                           \
		__typeof__(*(p)) value_ = __atomic_load_n(p, order); \
		fuzz_loaded(p, sizeof(value_));                      \
		value_;                                              \
	})

#define read_once(p) fuzz_load(p, __ATOMIC_RELAXED)
#define write_once(p, value) __atomic_store_n(p, value, __ATOMIC_RELAXED)
#define load_acquire(p) fuzz_load(p, __ATOMIC_ACQUIRE)
#define store_release(p, value) __atomic_store_n(p, value, __ATOMIC_RELEASE)
#define full_fence() __atomic_thread_fence(__ATOMIC_SEQ_CST)

#endif

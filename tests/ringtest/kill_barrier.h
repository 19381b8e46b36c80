/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The barriers of barrier.h for kill.c: the device may be killed before any of
 * its stores.  They are made in the order of the program.
 */
#ifndef BARRIER_H
#define BARRIER_H

void kill_before_store(void);

#define read_once(p) __atomic_load_n(p, __ATOMIC_RELAXED)
#define write_once(p, value) \
	(kill_before_store(), __atomic_store_n(p, value, __ATOMIC_RELAXED))
#define load_acquire(p) __atomic_load_n(p, __ATOMIC_ACQUIRE)
#define store_release(p, value) \
	(kill_before_store(), __atomic_store_n(p, value, __ATOMIC_RELEASE))
#define full_fence() __atomic_thread_fence(__ATOMIC_SEQ_CST)

#endif

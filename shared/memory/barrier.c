// SPDX-License-Identifier: Apache-2.0
/*
 * Barriers for code in Python, which has none.
 *
 * Python loads and stores by memoryview, one instruction for an aligned word.
 * Two of them are ordered by the processor alone: always on x86-64 but for a
 * store and a later load, and not at all elsewhere.  A call between them is
 * opaque to the compiler that built Python, so it keeps their order, too.
 *
 * vhostpci_shared/barriers.py says what each one is for in the metadata.
 */
#include "barrier_api.h"

/**
 * barrier_acquire() - Do the loads before this before all that follows
 *
 * Between the load of a word that another side stored last and the loads of
 * what it stored before.  No instruction on x86-64.
 */
void barrier_acquire(void)
{
	__atomic_thread_fence(__ATOMIC_ACQUIRE);
}

/**
 * barrier_release() - Let others see the stores before this before later ones
 *
 * Also: do the loads before this before later stores.  No instruction on
 * x86-64.
 */
void barrier_release(void)
{
	__atomic_thread_fence(__ATOMIC_RELEASE);
}

/**
 * barrier_full() - Let others see the stores before this before any later access
 *
 * Also before a later store to a register of a device, which is memory of
 * another kind.
 */
void barrier_full(void)
{
	__atomic_thread_fence(__ATOMIC_SEQ_CST);
}

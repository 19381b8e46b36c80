/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Access to memory that another thread or another VM uses at the same time.
 *
 * All of the ring driver goes through these five names, but for guard.c, whose
 * counters are for a signal handler.  Each is one access that the compiler can
 * neither split, repeat, nor leave out.  The line that uses an acquire, a
 * release or a fence says what it pairs with.
 *
 * A test build may replace the five: it has the compiler read a header with its
 * own definitions first (-include), which defines BARRIER_H.  See
 * fuzz_barrier.h.
 */
#ifndef BARRIER_H
#define BARRIER_H

/* An index or a flag that orders nothing else. */
#define read_once(p) __atomic_load_n(p, __ATOMIC_RELAXED)
#define write_once(p, value) __atomic_store_n(p, value, __ATOMIC_RELAXED)

/* What the other side wrote before its store is seen by loads after this. */
#define load_acquire(p) __atomic_load_n(p, __ATOMIC_ACQUIRE)

/* A side that sees the value stored also sees what we wrote before it. */
#define store_release(p, value) __atomic_store_n(p, value, __ATOMIC_RELEASE)

/*
 * All stores before this are seen by others before any load after it is made.
 * Neither acquire nor release gives that, nor does an x86 by itself.
 */
#define full_fence() __atomic_thread_fence(__ATOMIC_SEQ_CST)

#endif

/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Barriers: the order in which another process or VM sees what Python stores.
 *
 * cffi reads this file, and the compiler does: it has neither #include nor #if.
 * The functions are documented at their definitions in barrier.c.
 */

void barrier_acquire(void);
void barrier_release(void);
void barrier_full(void);

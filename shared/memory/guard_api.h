/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Guards: a process survives the loss of memory that it has mapped.
 *
 * cffi reads this file, and the compiler does: it has neither #include nor #if.
 * The functions are documented at their definitions in guard.c.
 */

int guard_open(uint64_t address, uint64_t size, int32_t fd);
int guard_close(uint32_t number);
int guard_lost(uint32_t number);

/* SPDX-License-Identifier: Apache-2.0 */
/*
 * A machine that makes use of all the freedom that memory orders leave to it.
 *
 * The ring code under test is compiled with -fsanitize=thread, so it calls a
 * function of machine.c before, or in place of, each access to memory.
 * Accesses to the master's memory are numbered from machine_start() on:
 *
 *  - Before access number `at`, or after the last one, the master acts.
 *  - Stores stay in a buffer, unseen by the master, until a full fence.  One
 *    location can be chosen whose stores overtake those in the buffer, unless
 *    they are releases.
 *  - What the master wrote before it raised an index can be held back until an
 *    acquire load of that index.
 *  - The bytes that an access has read can be overwritten before the next one.
 *
 * Real machines do each of these things.  An access to the master's memory that
 * is not atomic ends the program, but for reads of single bytes.
 */
#ifndef MACHINE_H
#define MACHINE_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

enum {
	MACHINE_NEVER = -1
};

struct machine {
	/* The master's memory: other accesses are none of our business. */
	uint8_t *memory;
	size_t size;
	/* act(arg) is called before access number `at`, or at the end. */
	int at;
	void (*act)(void *arg);
	/* Called when a store to `eager` has become visible. */
	const void *eager;
	void (*seen)(void *arg);
	void *arg;
	/* The bytes read by access number `poison` are changed after it. */
	int poison;
	uint8_t poison_and;
	uint8_t poison_xor;
	/* How often each byte was read; NULL: not counted. */
	uint8_t *reads;
};

void machine_start(const struct machine *machine);
int machine_stop(void);
void machine_hold_back(void *p, const void *value, size_t size,
		       const void *until_acquired);
void die(const char *format, ...) __attribute__((format(printf, 1, 2)));

#endif

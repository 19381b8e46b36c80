// SPDX-License-Identifier: Apache-2.0
/*
 * The functions that GCC's -fsanitize=thread has the ring code call, and behind
 * them the machine that machine.h describes.  This file is not instrumented.
 */
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include "machine.h"

enum {
	MACHINE_STORES = 64
};

struct store {
	void *p;
	size_t size;
	uint64_t value;
	const void *until; /* for the master's: the index to be acquired */
};

static struct machine now;
static bool running;
static bool inside; /* the master acts: its accesses are its own business */
static int count;
static const void *last_read;
static size_t last_size;
static struct store buffer[MACHINE_STORES];
static int n_buffer;
static struct store held_back[MACHINE_STORES];
static int n_held_back;

void die(const char *format, ...)
{
	va_list args;

	va_start(args, format);
	vfprintf(stderr, format, args);
	va_end(args);
	fputc('\n', stderr);
	exit(1);
}

static bool shared(const volatile void *p)
{
	return running && !inside &&
	       (uintptr_t)p - (uintptr_t)now.memory < now.size;
}

static void add(struct store *list, int *n, struct store entry)
{
	if (*n == MACHINE_STORES)
		die("the machine's store buffer is full");
	list[(*n)++] = entry;
}

static void apply(struct store *list, int *n)
{
	for (int i = 0; i < *n; i++)
		memcpy(list[i].p, &list[i].value, list[i].size);
	*n = 0;
}

static void poison_last_read(void)
{
	uint8_t *p = (void *)(uintptr_t)last_read;

	for (size_t i = 0; i < last_size; i++)
		p[i] = (p[i] & now.poison_and) ^ now.poison_xor;
	last_size = 0;
}

/* All that happens between the last access and the next. */
static void step(void)
{
	if (count - 1 == now.poison)
		poison_last_read();
	if (count == now.at && now.act) {
		inside = true;
		now.act(now.arg);
		inside = false;
	}
	count++;
}

/**
 * machine_start() - Number accesses from here
 * @machine:	What happens at them
 */
void machine_start(const struct machine *machine)
{
	now = *machine;
	count = 0;
	last_size = 0;
	running = true;
}

/**
 * machine_stop() - Make all stores visible
 *
 * The master acts here if it was to act after the last access.
 *
 * Return: number of accesses
 */
int machine_stop(void)
{
	int n = count;

	step();
	running = false;
	apply(buffer, &n_buffer);
	apply(held_back, &n_held_back);
	return n;
}

/**
 * machine_hold_back() - Store, but let it be seen only after an acquire
 * @p:		Where
 * @value:	What
 * @size:	Its size, up to 8
 * @until_acquired: Location whose acquire load makes it visible
 */
void machine_hold_back(void *p, const void *value, size_t size,
		       const void *until_acquired)
{
	struct store entry = {.p = p, .size = size, .until = until_acquired};

	memcpy(&entry.value, value, size);
	add(held_back, &n_held_back, entry);
}

static void note_read(const volatile void *p, size_t size)
{
	step();
	last_read = (const void *)p;
	last_size = size;
	for (size_t i = 0; now.reads && i < size; i++)
		now.reads[(uintptr_t)p - (uintptr_t)now.memory + i]++;
}

static void acquired(const volatile void *p)
{
	if (n_held_back && held_back[0].until == p)
		apply(held_back, &n_held_back);
}

static uint64_t load(const volatile void *p, size_t size, int order)
{
	uint64_t value = 0;

	if (shared(p)) {
		note_read(p, size);
		for (int i = n_buffer - 1; i >= 0; i--)
			if (buffer[i].p == p && buffer[i].size == size)
				return buffer[i].value;
	}
	memcpy(&value, (const void *)p, size);
	if (shared(p) && order != __ATOMIC_RELAXED)
		acquired(p);
	return value;
}

static void store(volatile void *p, size_t size, uint64_t value, int order)
{
	struct store entry = {.p = (void *)p, .size = size, .value = value};

	if (!shared(p)) {
		memcpy((void *)p, &value, size);
		return;
	}
	step();
	if (p != now.eager) {
		add(buffer, &n_buffer, entry);
		return;
	}
	/* It overtakes what is in the buffer, unless it is a release. */
	if (order != __ATOMIC_RELAXED)
		apply(buffer, &n_buffer);
	memcpy((void *)p, &value, size);
	inside = true;
	now.seen(now.arg);
	inside = false;
}

static void plain_read(const void *p, size_t size)
{
	if (!shared(p))
		return;
	if (size > 1)
		die("a read of %zu bytes of the master's memory is not atomic",
		    size);
	note_read(p, size);
}

static void plain_write(const void *p, size_t size)
{
	if (shared(p))
		die("a write of %zu bytes to the master's memory is not atomic",
		    size);
}

/* What GCC calls.  Their names are fixed. */

void __tsan_init(void);
void __tsan_func_entry(void *caller);
void __tsan_func_exit(void);
void __tsan_read_range(void *p, size_t size);
void __tsan_write_range(void *p, size_t size);
void __tsan_atomic_thread_fence(int order);

void __tsan_init(void)
{
}

void __tsan_func_entry(void *caller)
{
	(void)caller;
}

void __tsan_func_exit(void)
{
}

void __tsan_read_range(void *p, size_t size)
{
	plain_read(p, size);
}

void __tsan_write_range(void *p, size_t size)
{
	plain_write(p, size);
}

void __tsan_atomic_thread_fence(int order)
{
	if (order == __ATOMIC_SEQ_CST)
		apply(buffer, &n_buffer);
}

#define PLAIN(size)                                 \
	void __tsan_read##size(void *p);            \
	void __tsan_write##size(void *p);           \
	void __tsan_unaligned_read##size(void *p);  \
	void __tsan_unaligned_write##size(void *p); \
	void __tsan_read##size(void *p)             \
	{                                           \
		plain_read(p, size);                \
	}                                           \
	void __tsan_write##size(void *p)            \
	{                                           \
		plain_write(p, size);               \
	}                                           \
	void __tsan_unaligned_read##size(void *p)   \
	{                                           \
		plain_read(p, size);                \
	}                                           \
	void __tsan_unaligned_write##size(void *p)  \
	{                                           \
		plain_write(p, size);               \
	}

PLAIN(1)
PLAIN(2)
PLAIN(4)
PLAIN(8)
PLAIN(16)

#define ATOMIC(bits)                                                       \
	uint##bits##_t __tsan_atomic##bits##_load(                         \
		const volatile uint##bits##_t *p, int order);              \
	void __tsan_atomic##bits##_store(volatile uint##bits##_t *p,       \
					 uint##bits##_t value, int order); \
	uint##bits##_t __tsan_atomic##bits##_load(                         \
		const volatile uint##bits##_t *p, int order)               \
	{                                                                  \
		return load(p, bits / 8, order);                           \
	}                                                                  \
	void __tsan_atomic##bits##_store(volatile uint##bits##_t *p,       \
					 uint##bits##_t value, int order)  \
	{                                                                  \
		store(p, bits / 8, value, order);                          \
	}

ATOMIC(8)
ATOMIC(16)
ATOMIC(32)
ATOMIC(64)

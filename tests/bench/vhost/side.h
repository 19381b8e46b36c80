/* SPDX-License-Identifier: Apache-2.0 */
/*
 * A device's side of the rings: ours (ours.c), or DPDK's library (dpdk.c).  Both
 * work on the same ring, one after the other: what end() returns goes to the
 * next one's begin().  This header has neither DPDK's names nor the ring's,
 * which would not go together in one file.
 */
#ifndef SIDE_H
#define SIDE_H

#include <stdbool.h>
#include <stdint.h>

enum {
	SIDE_BURST = 32 /* packets: what DPDK's programs take at a time */
};

/* Named from the driver's point of view, as VIRTIO does. */
enum side_direction {
	SIDE_RX, /* to the driver */
	SIDE_TX, /* from the driver */
	SIDE_DIRECTIONS
};

/* A piece of the driver's memory. */
struct side_region {
	uint64_t guest;
	uint64_t size;
	uint64_t host;
};

/* A ring, by guest addresses. */
struct side_ring {
	uint64_t desc;
	uint64_t driver;
	uint64_t device;
	uint16_t size;
};

/* What the driver has negotiated, and where its memory and its rings lie. */
struct side_setup {
	int vid; /* DPDK's number of the device */
	bool packed;
	bool mergeable;
	bool in_order;
	bool indirect;
	uint32_t n_regions;
	struct side_region region[8];
	struct side_ring ring[SIDE_DIRECTIONS];
};

struct side {
	const char *name;
	void (*init)(const struct side_setup *setup);
	/* Take a ring at an index; packets to the driver have `size` bytes. */
	void (*begin)(enum side_direction direction, uint16_t index,
		      uint32_t size);
	/* What is timed.  Returns the number of packets. */
	unsigned int (*burst)(void);
	/* What is not timed, behind each burst. */
	void (*behind)(void);
	uint16_t (*end)(void);
};

extern const struct side side_ours;
extern const struct side side_dpdk;

void die(const char *format, ...)
	__attribute__((noreturn, format(printf, 1, 2)));

#endif

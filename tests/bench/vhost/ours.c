// SPDX-License-Identifier: Apache-2.0
/* Our side: a worker that is stepped, one pass for a burst. */
#include <fcntl.h>
#include "ring.h"
#include "side.h"
#include "sink.h"

enum {
	OURS_HEADER = 12, /* that of VERSION_1 */
	OURS_STOP_MS = 1000
};

static const struct side_setup *ours_setup;
static struct worker *ours_worker;
/* In shared memory when in use: a worker looks at one and writes the other. */
static struct ring_meta ours_meta __attribute__((aligned(64)));
static struct ring_position ours_position __attribute__((aligned(64)));
static enum side_direction ours_direction;
static uint32_t ours_size;

static void ours_init(const struct side_setup *setup)
{
	struct mem_region region[8];
	struct worker_conf conf = {
		/* sink.c uses none; one that is always ready looks like a TAP */
		.tap_fd = open("/dev/null", O_RDWR | O_NONBLOCK),
		.events_fd = -1,
		.manual = 1,
		.poll_min_ns = 50000,
		.poll_max_ns = 50000,
		.hold_ns = 1000000000,
	};

	ours_setup = setup;
	for (uint32_t i = 0; i < setup->n_regions; i++) {
		region[i].guest_addr = setup->region[i].guest;
		region[i].size = setup->region[i].size;
		region[i].host_addr = setup->region[i].host;
	}
	if (worker_create(&conf, &ours_worker) ||
	    worker_set_memory(ours_worker, region, setup->n_regions))
		die("our worker cannot use the driver's memory");
}

static uint32_t ours_flags(void)
{
	return (ours_setup->packed ? RING_PACKED : 0) |
	       (ours_setup->mergeable ? RING_MRG_RXBUF : 0) |
	       (ours_setup->in_order ? RING_IN_ORDER : 0) |
	       (ours_setup->indirect ? RING_INDIRECT : 0);
}

static void ours_begin(enum side_direction direction, uint16_t index,
		       uint32_t size)
{
	const struct side_ring *ring = &ours_setup->ring[direction];
	struct ring_conf conf = {
		.desc = ring->desc,
		.driver = ring->driver,
		.device = ring->device,
		.size = ring->size,
		.base = index,
		.flags = ours_flags(),
		.hdr_len = OURS_HEADER,
		.max_packet = RING_MAX_PACKET,
		.kick_fd = -1, /* the driver polls, and so do we */
		.call_fd = -1,
		.meta_addr = (uintptr_t)&ours_meta,
	};
	int r;

	if (ours_setup->packed) {
		/* Each start is one of a new ring: there is no predecessor. */
		ours_position = (struct ring_position){0};
		conf.position_addr = (uintptr_t)&ours_position;
		conf.origin = 1;
	}
	r = worker_start_ring(ours_worker,
			      direction == SIDE_RX ? RING_RX : RING_TX, &conf);
	if (r)
		die("our worker cannot start a ring: error %d", -r);
	ours_direction = direction;
	ours_size = size;
	sink_offer(SIDE_BURST, size);
}

static unsigned int ours_burst(void)
{
	return worker_step(ours_worker);
}

static void ours_behind(void)
{
	sink_offer(SIDE_BURST, ours_size);
}

static uint16_t ours_end(void)
{
	struct ring_status status;
	uint32_t ring = ours_direction == SIDE_RX ? RING_RX : RING_TX;
	int index = worker_stop_ring(ours_worker, ring, OURS_STOP_MS);

	if (index < 0 || worker_read_ring(ours_worker, ring, &status))
		die("our worker cannot stop a ring: error %d", -index);
	if (status.fault)
		die("our worker's ring ended with fault %u", status.fault);
	return index;
}

const struct side side_ours = {
	.name = "ours",
	.init = ours_init,
	.begin = ours_begin,
	.burst = ours_burst,
	.behind = ours_behind,
	.end = ours_end,
};

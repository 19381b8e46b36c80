/* SPDX-License-Identifier: Apache-2.0 */
#ifndef CAPTURE_H
#define CAPTURE_H

#include <sys/uio.h>
#include "ring.h"

/* Where a worker copies its packets to; its own, and never read back. */
struct capture {
	uint8_t *slots;
	uint32_t n_slots;
	uint32_t slot_size; /* of struct capture_slot and the bytes behind it */
	uint64_t count; /* packets so far */
};

bool capture_valid(uint64_t addr, uint32_t n_slots, uint32_t slot_size);
void capture_packet(struct capture *c, enum ring_index ring, uint32_t hdr_len,
		    const struct iovec *iov, uint32_t len);

#endif

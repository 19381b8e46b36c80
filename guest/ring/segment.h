/* SPDX-License-Identifier: Apache-2.0 */
#ifndef SEGMENT_H
#define SEGMENT_H

#include <sys/uio.h>
#include "net.h"

enum {
	SEGMENT_HEADERS = 256, /* Ethernet to UDP; more is refused */
	SEGMENT_COUNT =
		128 /* of one packet, as Linux has it (UDP_MAX_SEGMENTS) */
};

/* Where a copy goes on: in the first of iov[], behind `offset` bytes. */
struct segment_cursor {
	const struct iovec *iov;
	size_t offset;
};

/* A UDP packet that is written as several. */
struct segments {
	uint32_t left; /* bytes of data not written yet; 0: nothing to write */
	uint32_t len; /* of these in the segment in iov[] */
	uint16_t size; /* of each segment's data but the last's */
	uint16_t count; /* segments before this one */
	bool sent; /* one at least was written */
	bool ipv4;
	uint16_t id; /* of the first IPv4 header */
	uint16_t udp_len; /* as the UDP header had it, for udp_check */
	uint16_t udp_check;
	uint32_t hdr_len; /* of the net header; the next two count from there */
	uint32_t ip; /* where the IP header begins */
	uint32_t udp;
	struct segment_cursor next; /* of the data */
	struct segment_cursor after; /* behind this segment's data */
	struct iovec iov[VQ_CHAIN_IOVS + 1];
	uint8_t head[NET_HDR_MRG_LEN + SEGMENT_HEADERS];
};

int segments_begin(struct segments *s, const struct iovec *iov, uint64_t len,
		   uint32_t hdr_len);
int segments_build(struct segments *s);
void segments_next(struct segments *s);

#endif

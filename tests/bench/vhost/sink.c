// SPDX-License-Identifier: Apache-2.0
/*
 * In place of the ring's tap.c: writing copies a packet to a buffer, reading
 * copies one from it, as DPDK's library copies to and from an mbuf: with the
 * same function, and with as many buffers as a burst has, which stay cached as
 * the mbufs do.  So both sides copy each packet once.
 */
#include <errno.h>
#include <rte_memcpy.h>
#include "side.h"
#include "sink.h"
#include "tap.h"

enum {
	SINK_HEADER = 12, /* struct virtio_net_hdr_mrg_rxbuf */
	SINK_BUFFER = 2048 + 128 /* as an mbuf's */
};

static uint8_t sink_buffer[SIDE_BURST][SINK_BUFFER]
	__attribute__((aligned(64)));
static unsigned int sink_next;
static unsigned int sink_left; /* packets that reading still finds */
static size_t sink_size; /* of each of them, with its header */

/**
 * sink_offer() - Say how many packets there are to read until it is called again
 * @packets:	Number of them
 * @size:	Of each, without the net header
 */
void sink_offer(unsigned int packets, uint32_t size)
{
	sink_left = packets;
	sink_size = SINK_HEADER + size;
}

static uint8_t *sink_take(void)
{
	return sink_buffer[sink_next++ % SIDE_BURST];
}

ssize_t tap_read(int fd, const struct iovec *iov, int n)
{
	const uint8_t *from = sink_take();
	size_t left = sink_size, part;

	(void)fd;
	if (!sink_left)
		return -EAGAIN;
	sink_left--;
	for (int i = 0; left && i < n; i++) {
		part = iov[i].iov_len < left ? iov[i].iov_len : left;
		rte_memcpy(iov[i].iov_base, from, part);
		from += part;
		left -= part;
	}
	return sink_size - left;
}

ssize_t tap_write(int fd, const struct iovec *iov, int n)
{
	uint8_t *to = sink_take();
	size_t length = 0;

	(void)fd;
	for (int i = 0; i < n; i++) {
		if (iov[i].iov_len > SINK_BUFFER - length)
			die("the driver sent a packet that is too long");
		rte_memcpy(to + length, iov[i].iov_base, iov[i].iov_len);
		length += iov[i].iov_len;
	}
	return length;
}

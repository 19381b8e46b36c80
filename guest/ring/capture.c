// SPDX-License-Identifier: Apache-2.0
/*
 * Copies of packets for `vhostpci-guest pcap`, in memory that it maps.
 *
 * The worker never waits for who reads: it overwrites the oldest copy, and the
 * reader sees by the numbers how many it has missed.  Nothing here is read back
 * from that memory, so whatever is done to it, the worker stays within it.
 */
#include <string.h>
#include <time.h>
#include "capture.h"

/**
 * capture_valid() - Check the memory for copies
 * @addr:	Where it is
 * @n_slots:	Copies that it holds
 * @slot_size:	Bytes of each, with its struct capture_slot
 *
 * Return: true if a struct capture may have them
 */
bool capture_valid(uint64_t addr, uint32_t n_slots, uint32_t slot_size)
{
	const uint32_t align = sizeof(uint64_t);

	return n_slots && slot_size > sizeof(struct capture_slot) &&
	       !(slot_size % align) && !(addr % align);
}

static void capture_copy(uint8_t *to, const struct iovec *iov, uint32_t len)
{
	for (; len; iov++) {
		uint32_t part = iov->iov_len < len ? iov->iov_len : len;

		memcpy(to, iov->iov_base, part);
		to += part;
		len -= part;
	}
}

/**
 * capture_packet() - Copy a packet
 * @c:		Where to
 * @ring:	The ring that it crosses
 * @hdr_len:	Length of its net header
 * @iov:	The packet with its header; at least @len bytes
 * @len:	Length, with the header
 *
 * The packet lies in the master's memory, and the kernel has read or written it
 * before: a hostile master can make this copy differ from what was sent.
 */
void capture_packet(struct capture *c, enum ring_index ring, uint32_t hdr_len,
		    const struct iovec *iov, uint32_t len)
{
	size_t at = (size_t)(c->count % c->n_slots) * c->slot_size;
	struct capture_slot *slot = (void *)(c->slots + at);
	uint32_t room = c->slot_size - sizeof(*slot);
	struct timespec t;

	clock_gettime(CLOCK_REALTIME, &t);
	/* The old copy must be invalid before the first byte of the new one. */
	write_once(&slot->number, 0);
	full_fence();
	slot->time_ns = (uint64_t)t.tv_sec * 1000000000 + t.tv_nsec;
	slot->len = len;
	slot->copied = len < room ? len : room;
	slot->ring = ring;
	slot->hdr_len = hdr_len;
	capture_copy((uint8_t *)(slot + 1), iov, len < room ? len : room);
	/* Pairs with the first load in `Reader.read` of capture.py. */
	store_release(&slot->number, ++c->count);
}

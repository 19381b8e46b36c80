// SPDX-License-Identifier: Apache-2.0
/*
 * The fuzzer's master as a driver that is correct, or nearly: whole chains, rings
 * full of buffers, packets for segment.c.
 */
#include <string.h>
#include "fuzz.h"

enum {
	FUZZ_FILL = 1100, /* more than RX_CHAINS */
	FUZZ_PIECES = 16,
	FUZZ_HEADERS = 128 /* more than any headers here */
};

/* Where the driver puts a descriptor that it then offers. */
static uint16_t fuzz_slot(const struct fuzz *f, int ring, uint16_t slot)
{
	return f->packed ? f->next[ring] & 0x7fff : slot;
}

/* Offer a correct chain: one buffer, or a table of many small ones. */
void fuzz_good(struct fuzz *f)
{
	uint8_t what = fuzz_byte(f);
	uint16_t write = what & 1 ? 0 : 2;
	uint16_t slot = fuzz_slot(f, what & 1, fuzz_byte(f) % f->conf[0].size);
	uint8_t *at = fuzz_ring(f, what & 1) + 16 * slot;
	uint32_t len = fuzz_len(f) & 0x3ff, n = len ? len : 1024;
	uint64_t data = fuzz_big_addr(f, FUZZ_DATA);

	if (what & 2) {
		fuzz_put(f, at, data, len, write, 0);
	} else {
		fuzz_put(f, at, fuzz_big_addr(f, 0), 16 * n, 4, 0);
		for (uint32_t i = 0; i < n; i++)
			fuzz_put(f, fuzz_big(f, 16 * i), data + i, what >> 6,
				 i + 1 < n ? write | 1 : write, i + 1);
	}
	fuzz_offer(f, what & 1, slot);
}

/* Can the driver offer no buffer, because the device has not used any? */
static bool fuzz_is_full(const struct fuzz *f, uint16_t avail)
{
	const struct vq *vq = &f->rx.q.vq;

	if (f->packed)
		return f->next[RING_RX] == fuzz_wrap(f, vq->used, vq->num);
	return (uint16_t)(avail - vq->used) >= vq->num;
}

/* Offer up to @n receive chains of one descriptor, which is always the same. */
static void fuzz_post_many(struct fuzz *f, uint32_t n, uint64_t addr,
			   uint32_t len, uint16_t flags)
{
	const uint8_t *idx = fuzz_ring(f, RING_RX) + fuzz_avail(f) + 2;

	for (uint32_t i = 0; i < n; i++) {
		uint16_t avail = fuzz_get_word(idx);
		uint16_t slot = fuzz_slot(f, RING_RX, avail % f->conf[0].size);

		if (fuzz_is_full(f, avail))
			break;
		fuzz_put(f, fuzz_ring(f, RING_RX) + 16 * slot, addr, len, flags,
			 0);
		fuzz_offer(f, RING_RX, slot);
	}
}

/* Fill the receive ring with buffers of 512 bytes, or post tables of 700. */
void fuzz_post(struct fuzz *f, bool tables)
{
	uint64_t data = fuzz_big_addr(f, FUZZ_DATA);

	if (!tables) {
		fuzz_post_many(f, FUZZ_FILL, data, 512, 2);
		return;
	}
	for (uint16_t i = 0; i < 700; i++)
		fuzz_put(f, fuzz_big(f, 16 * i), data + i, 1, i < 699 ? 3 : 2,
			 i + 1);
	fuzz_post_many(f, 8, fuzz_big_addr(f, 0), 16 * 700, 4);
}

/* Fill the receive ring with buffers of any length, also of 0. */
void fuzz_fill(struct fuzz *f)
{
	uint32_t n = fuzz_byte(f);
	uint32_t len = fuzz_len(f);

	fuzz_post_many(f, n & 1 ? FUZZ_FILL : n, fuzz_big_addr(f, FUZZ_DATA),
		       len, 2);
}

static uint8_t *fuzz_put_be(uint8_t *at, uint16_t value)
{
	at[0] = value >> 8;
	at[1] = value & 0xff;
	return at + 2;
}

static uint8_t *fuzz_put_ip(uint8_t *at, uint8_t how)
{
	if (how & 1) { /* with an extension header or without */
		at[0] = 0x60;
		at[6] = how & 2 ? 60 : 17;
		at[40] = 17;
		return at + (how & 2 ? 48 : 40);
	}
	at[0] = how & 2 ? 0x4f : 0x45;
	at[9] = 17;
	return at + (how & 2 ? 60 : 20);
}

/* Headers from Ethernet to UDP, with up to three VLAN tags. */
static uint8_t *fuzz_put_headers(uint8_t *frame, uint8_t how)
{
	uint8_t *at = frame + 12;

	for (int tags = how >> 2 & 3; tags; tags--) {
		at = fuzz_put_be(at, how & 16 ? 0x8100 : 0x88a8);
		at += 2;
	}
	at = fuzz_put_be(at, how & 1 ? 0x86dd : 0x0800);
	return fuzz_put_ip(at, how);
}

static void fuzz_put_net_hdr(uint8_t *at, uint8_t type, uint16_t gso_size,
			     uint16_t csum_start)
{
	at[0] = 1; /* NEEDS_CSUM */
	at[1] = type;
	fuzz_put_word(at + 4, gso_size);
	fuzz_put_word(at + 6, csum_start);
	fuzz_put_word(at + 8, 6);
}

/* Offer @len bytes of data as one buffer, or in pieces by a table. */
static void fuzz_send(struct fuzz *f, uint32_t len, uint32_t pieces)
{
	uint16_t slot = fuzz_slot(f, RING_TX, fuzz_byte(f) % f->conf[0].size);
	uint8_t *at = fuzz_ring(f, RING_TX) + 16 * slot;
	uint64_t data = fuzz_big_addr(f, FUZZ_DATA);

	fuzz_put(f, at, data, len, 0, 0);
	if (pieces)
		fuzz_put(f, at, fuzz_big_addr(f, 0), 16 * (pieces + 1), 4, 0);
	for (uint32_t i = 0; i < pieces; i++) {
		uint32_t part = fuzz_len(f) % (len + 1);

		fuzz_put(f, fuzz_big(f, 16 * i), data, part, 1, i + 1);
		data += part;
		len -= part;
	}
	fuzz_put(f, fuzz_big(f, 16 * pieces), data, len, 0, 0);
	fuzz_offer(f, RING_TX, slot);
}

/* Send a UDP packet to be segmented; often a byte or two of it are wrong. */
void fuzz_udp(struct fuzz *f)
{
	uint32_t hdr_len = f->conf[RING_TX].hdr_len;
	uint8_t how = fuzz_byte(f), wrong = fuzz_byte(f);
	uint16_t gso_size = fuzz_len(f);
	uint8_t *packet = fuzz_big(f, FUZZ_DATA), *frame = packet + hdr_len;
	uint32_t headers;

	memset(packet, 0, FUZZ_HEADERS);
	headers = fuzz_put_headers(frame, how) - frame;
	fuzz_put_net_hdr(packet, how & 32 ? 0x85 : 5, gso_size, headers);
	for (; wrong & 3; wrong--)
		packet[fuzz_byte(f) % (hdr_len + headers)] = fuzz_byte(f);
	fuzz_send(f, hdr_len + headers + 8 + fuzz_len(f) % 0x10200,
		  how & 64 ? fuzz_byte(f) % FUZZ_PIECES : 0);
}

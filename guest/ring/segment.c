// SPDX-License-Identifier: Apache-2.0
/*
 * UDP segmentation for a TAP that does not know VIRTIO_NET_HDR_GSO_UDP_L4, as in
 * Linux before 6.2.  A packet of that kind becomes datagrams of gso_size bytes
 * each, as the kernel would make them.  The data stays where it is: each segment
 * is an iovec list that starts with headers of ours, and goes on in the master's
 * buffers.
 *
 * The headers are read once, into head[], and checked there.  A packet that the
 * kernel would refuse is refused.
 */
#include <assert.h>
#include <endian.h>
#include <errno.h>
#include <string.h>
#include "segment.h"

/* struct virtio_net_hdr; little-endian */
enum {
	NET_HDR_FLAGS = 0,
	NET_HDR_GSO_TYPE = 1,
	NET_HDR_HDR_LEN = 2,
	NET_HDR_GSO_SIZE = 4,
	NET_HDR_CSUM_START = 6,
	NET_HDR_CSUM_OFFSET = 8,
	NET_HDR_F_NEEDS_CSUM = 1,
	NET_HDR_GSO_UDP_L4 = 5,
	NET_HDR_GSO_ECN = 0x80
};

/* Lengths and offsets of the protocols' headers, in bytes. */
enum {
	ETH_TYPE = 12,
	ETH_LEN = 14,
	VLAN_LEN = 4,
	IPV4_LEN = 20, /* without options */
	IPV4_TOTAL = 2,
	IPV4_ID = 4,
	IPV4_FRAGMENT = 6,
	IPV4_PROTOCOL = 9,
	IPV4_CHECK = 10,
	IPV6_LEN = 40,
	IPV6_PAYLOAD = 4,
	UDP_LEN = 8,
	UDP_LENGTH = 4,
	UDP_CHECK = 6
};

enum {
	ETH_P_IPV4 = 0x0800,
	ETH_P_IPV6 = 0x86dd,
	ETH_P_VLAN = 0x8100,
	ETH_P_QINQ = 0x88a8,
	PROTOCOL_UDP = 17,
	IPV4_IS_FRAGMENT = 0x3fff /* more fragments, or an offset */
};

static_assert(SEGMENT_HEADERS >= ETH_LEN + 2 * VLAN_LEN + 60 + UDP_LEN,
	      "two VLAN tags and the longest IPv4 header");

static uint16_t get_be16(const uint8_t *p)
{
	return (uint16_t)(p[0] << 8 | p[1]);
}

static void put_be16(uint8_t *p, uint16_t value)
{
	p[0] = value >> 8;
	p[1] = value & 0xff;
}

static uint16_t get_le16(const uint8_t *p)
{
	return (uint16_t)(p[1] << 8 | p[0]);
}

static void put_le16(uint8_t *p, uint16_t value)
{
	p[0] = value & 0xff;
	p[1] = value >> 8;
}

/* Add up in ones' complement (RFC 1071). */
static uint16_t fold(uint32_t sum)
{
	sum = (sum & 0xffff) + (sum >> 16);
	return (sum & 0xffff) + (sum >> 16);
}

/* Copy @len bytes, which must be there, and go on behind them. */
static void take(struct segment_cursor *c, uint8_t *to, size_t len)
{
	size_t part;

	while (len) {
		part = c->iov->iov_len - c->offset;
		if (part > len)
			part = len;
		memcpy(to, (uint8_t *)c->iov->iov_base + c->offset, part);
		to += part;
		len -= part;
		c->offset += part;
		if (c->offset == c->iov->iov_len) {
			c->iov++;
			c->offset = 0;
		}
	}
}

/* Find the IP header behind Ethernet and at most two VLAN tags; 0: there is none. */
static uint32_t find_ip(const uint8_t *frame, uint32_t len, uint16_t *type)
{
	uint32_t at = ETH_TYPE;

	for (int tags = 0; at + 2 <= len; tags++) {
		*type = get_be16(frame + at);
		if (*type != ETH_P_VLAN && *type != ETH_P_QINQ)
			return at + 2;
		if (tags == 2)
			break;
		at += VLAN_LEN;
	}
	return 0;
}

/* Check an IPv4 header that ends at @end. */
static bool ipv4_valid(const uint8_t *ip, const uint8_t *end)
{
	if (end - ip < IPV4_LEN || ip[0] >> 4 != 4)
		return false;
	return ip + (ip[0] & 15) * 4 == end &&
	       ip[IPV4_PROTOCOL] == PROTOCOL_UDP &&
	       !(get_be16(ip + IPV4_FRAGMENT) & IPV4_IS_FRAGMENT);
}

/* Extension headers may follow: csum_start says where UDP is. */
static bool ipv6_valid(const uint8_t *ip, const uint8_t *end)
{
	return end - ip >= IPV6_LEN && ip[0] >> 4 == 6;
}

/* Check the IP header in front of @udp; note what differs between segments. */
static int read_ip(struct segments *s, const uint8_t *frame, uint32_t udp)
{
	uint16_t type = 0;
	uint32_t at = find_ip(frame, udp, &type);
	const uint8_t *ip = frame + at, *end = frame + udp;

	if (!at)
		return -EINVAL;
	s->ip = at;
	s->ipv4 = type == ETH_P_IPV4;
	if (s->ipv4 && ipv4_valid(ip, end)) {
		s->id = get_be16(ip + IPV4_ID);
		return 0;
	}
	return type == ETH_P_IPV6 && ipv6_valid(ip, end) ? 0 : -EINVAL;
}

/* The length of the next segment's data. */
static uint32_t segment_len(const struct segments *s)
{
	return s->left < s->size ? s->left : s->size;
}

/* Read the headers behind the net header, and check them. */
static int read_headers(struct segments *s, uint64_t len)
{
	uint8_t *frame = s->head + s->hdr_len;
	uint32_t udp = get_le16(s->head + NET_HDR_CSUM_START);
	uint32_t headers = udp + UDP_LEN;
	int r;

	if (!(s->head[NET_HDR_FLAGS] & NET_HDR_F_NEEDS_CSUM) ||
	    get_le16(s->head + NET_HDR_CSUM_OFFSET) != UDP_CHECK)
		return -EINVAL;
	if (headers > SEGMENT_HEADERS || s->hdr_len + headers >= len)
		return -EINVAL;
	s->size = get_le16(s->head + NET_HDR_GSO_SIZE);
	s->left = len - s->hdr_len - headers;
	/* Also where the size is 0. */
	if (s->left > (uint32_t)s->size * SEGMENT_COUNT)
		return -EINVAL;
	take(&s->next, frame, headers);
	r = read_ip(s, frame, udp);
	if (r)
		return r;
	/* The longest segment has a length of 16 bits in each header. */
	if (headers - s->ip + segment_len(s) > UINT16_MAX)
		return -EINVAL;
	s->udp = udp;
	s->udp_len = get_be16(frame + udp + UDP_LENGTH);
	s->udp_check = get_be16(frame + udp + UDP_CHECK);
	return 0;
}

/**
 * segments_begin() - Look at a packet, and prepare its segments if it has any
 * @s:		State; must not be in use
 * @iov:	The packet, net header first; must stay until the last segment
 * @len:	Its length, not less than @hdr_len, at most RING_MAX_PACKET more
 * @hdr_len:	Length of the net header
 *
 * Return: 1: there are segments; 0: it is another kind of packet; -EINVAL: it is
 *	   malformed
 */
int segments_begin(struct segments *s, const struct iovec *iov, uint64_t len,
		   uint32_t hdr_len)
{
	int r;

	s->next.iov = iov;
	s->next.offset = 0;
	s->left = 0;
	take(&s->next, s->head, hdr_len);
	if ((s->head[NET_HDR_GSO_TYPE] & ~NET_HDR_GSO_ECN) !=
	    NET_HDR_GSO_UDP_L4)
		return 0;

	s->hdr_len = hdr_len;
	s->count = 0;
	s->sent = false;
	r = read_headers(s, len);
	if (r) {
		s->left = 0;
		return r;
	}
	memset(s->head, 0, hdr_len);
	s->head[NET_HDR_FLAGS] = NET_HDR_F_NEEDS_CSUM;
	put_le16(s->head + NET_HDR_HDR_LEN, s->udp + UDP_LEN);
	put_le16(s->head + NET_HDR_CSUM_START, s->udp);
	put_le16(s->head + NET_HDR_CSUM_OFFSET, UDP_CHECK);
	return 1;
}

static void put_ipv4(uint8_t *ip, uint16_t total, uint16_t id)
{
	uint32_t sum = 0;

	put_be16(ip + IPV4_TOTAL, total);
	put_be16(ip + IPV4_ID, id);
	put_be16(ip + IPV4_CHECK, 0);
	for (uint32_t i = 0; i < (ip[0] & 15u) * 4; i += 2)
		sum += get_be16(ip + i);
	put_be16(ip + IPV4_CHECK, ~fold(sum));
}

/* Write the lengths of a segment with s->len bytes of data into its headers. */
static void put_headers(struct segments *s)
{
	uint8_t *ip = s->head + s->hdr_len + s->ip;
	uint8_t *udp = s->head + s->hdr_len + s->udp;
	uint16_t len = UDP_LEN + s->len, all = s->udp - s->ip + len;

	if (s->ipv4)
		put_ipv4(ip, all, s->id + s->count);
	else
		put_be16(ip + IPV6_PAYLOAD, all - IPV6_LEN);
	put_be16(udp + UDP_LENGTH, len);
	/*
	 * With NEEDS_CSUM the field has the sum of the pseudo header, of which
	 * the length is a part.  The addresses are not looked at: with a routing
	 * header the last one is elsewhere.
	 */
	put_be16(udp + UDP_CHECK,
		 fold((uint32_t)s->udp_check + (uint16_t)~s->udp_len + len));
}

/**
 * segments_build() - Make the next segment in s->iov; there must be one
 * @s:		State
 *
 * Return: number of vectors
 */
int segments_build(struct segments *s)
{
	struct segment_cursor c = s->next;
	uint32_t rest = segment_len(s);
	int n = 1;

	s->len = rest;
	put_headers(s);
	s->iov[0].iov_base = s->head;
	s->iov[0].iov_len = s->hdr_len + s->udp + UDP_LEN;
	while (rest) {
		size_t part = c.iov->iov_len - c.offset;

		if (part > rest)
			part = rest;
		s->iov[n].iov_base = (uint8_t *)c.iov->iov_base + c.offset;
		s->iov[n].iov_len = part;
		n++;
		rest -= part;
		c.offset += part;
		if (c.offset == c.iov->iov_len) {
			c.iov++;
			c.offset = 0;
		}
	}
	s->after = c;
	return n;
}

/**
 * segments_next() - Go on behind the segment that segments_build() has made
 * @s:		State
 */
void segments_next(struct segments *s)
{
	s->next = s->after;
	s->left -= s->len;
	s->count++;
}

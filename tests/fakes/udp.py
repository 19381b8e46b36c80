# SPDX-License-Identifier: Apache-2.0
"""UDP packets with GSO, as Linux's driver makes them, and what they must become."""

import struct

from .tap import HEADER

GSO_UDP_L4 = 5
NEEDS_CSUM = 1
ETHERNET = b"\xff" * 6 + b"\x02\0\0\0\0\x01"
IPV4, IPV6 = 0x0800, 0x86DD
_V4_ADDRESSES = bytes([192, 0, 2, 1, 192, 0, 2, 2])
_V6_ADDRESSES = bytes([0x20, 1, 0xD, 0xB8, *[0] * 11, 1]) * 2


def fold(data: bytes) -> int:
    """Add up 16-bit words in ones' complement (RFC 1071)."""
    data = pad(data)
    total: int = sum(struct.unpack(f"!{len(data) // 2}H", data))
    while total >> 16:
        total = (total & 0xFFFF) + (total >> 16)
    return total


def pad(data: bytes) -> bytes:
    """Return the data with an even length."""
    return data + b"\0" * (len(data) % 2)


def pseudo(ip_type: int, udp_length: int) -> bytes:
    """Return the pseudo header that a UDP checksum covers."""
    if ip_type == IPV4:
        return _V4_ADDRESSES + struct.pack("!HH", 17, udp_length)
    return _V6_ADDRESSES + struct.pack("!IxxxB", udp_length, 17)


def ip_header(
    ip_type: int, payload: int, ident: int = 0, options: bytes = b""
) -> bytes:
    """Return an IP header for a UDP packet of so many bytes after it."""
    if ip_type == IPV6:
        return struct.pack("!IHBB", 0x6 << 28, payload, 17, 64) + _V6_ADDRESSES
    first, total = 0x45 + len(options) // 4, 20 + len(options) + payload
    start = struct.pack("!BBHHHBB", first, 0, total, ident, 0, 64, 17)
    check = ~fold(start + b"\0\0" + _V4_ADDRESSES + options) & 0xFFFF
    return start + struct.pack("!H", check) + _V4_ADDRESSES + options


def link_header(ip_type: int, tags: int = 0) -> bytes:
    """Return an Ethernet header with so many VLAN tags."""
    return ETHERNET + b"\x81\0\0\5" * tags + struct.pack("!H", ip_type)


def gso_packet(
    data: bytes,
    size: int,
    ip_type: int = IPV4,
    *,
    tags: int = 0,
    ident: int = 0,
    options: bytes = b"",
) -> tuple[bytes, bytes]:
    """Return net header and frame of a packet that is to become several of `size`."""
    front = link_header(ip_type, tags)
    front += ip_header(ip_type, 8 + len(data), ident, options)
    check = fold(pseudo(ip_type, 8 + len(data)))
    udp = struct.pack("!HHHH", 1000, 2000, 8 + len(data), check)
    header = HEADER.pack(NEEDS_CSUM, GSO_UDP_L4, len(front) + 8, size, len(front), 6, 0)
    return header, front + udp + data


def datagram(
    data: bytes,
    ip_type: int = IPV4,
    *,
    tags: int = 0,
    ident: int = 0,
    options: bytes = b"",
) -> bytes:
    """Return the frame of one datagram, with its whole checksum."""
    front = link_header(ip_type, tags)
    front += ip_header(ip_type, 8 + len(data), ident, options)
    udp = struct.pack("!HHHH", 1000, 2000, 8 + len(data), 0)
    check = ~fold(pseudo(ip_type, 8 + len(data)) + udp + data) & 0xFFFF
    return front + udp[:6] + struct.pack("!H", check or 0xFFFF) + data


def finish(packet: bytes, hdr_len: int = 12) -> bytes:
    """Return the frame of a packet, with the checksum that its net header asks for."""
    flags, gso, hdr, size, start, offset = struct.unpack("<BBHHHH", packet[:10])
    frame = packet[hdr_len:]
    assert (flags, gso, size) == (NEEDS_CSUM, 0, 0)
    assert hdr == start + 8
    at = start + offset
    check = ~fold(frame[start:]) & 0xFFFF
    return frame[:at] + struct.pack("!H", check or 0xFFFF) + frame[at + 2 :]

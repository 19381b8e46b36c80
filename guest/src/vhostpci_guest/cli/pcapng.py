# SPDX-License-Identifier: Apache-2.0
"""Writes a pcapng file (IETF draft-ietf-opsawg-pcapng): blocks, each of them whole.

Packets have Ethernet's link type, which every reader knows; the virtio-net header that
came before a packet is in the packet's comment.
"""

from collections.abc import Sequence
from struct import Struct, pack

_SHB, _IDB, _EPB, _ISB = 0x0A0D0D0A, 1, 6, 5
_ETHERNET = 1
_END, _COMMENT = 0, 1
_SHB_USERAPPL = 4
_IF_NAME, _IF_DESCRIPTION, _IF_TSRESOL = 2, 3, 9
_EPB_FLAGS = 2
_ISB_IFRECV, _ISB_IFDROP = 4, 5
INBOUND, OUTBOUND = 1, 2
_NANOSECONDS = 9

Option = tuple[int, bytes]

_HEADER = Struct("<BBHHHH")
_GSO = {0: "", 1: "TCPV4", 3: "UDP", 4: "TCPV6", 5: "UDP_L4"}
_ECN = 0x80
_FLAGS = {1: "NEEDS_CSUM", 2: "DATA_VALID", 4: "RSC_INFO"}


def _block(kind: int, body: bytes, options: Sequence[Option] = ()) -> bytes:
    data = _padded(body) + b"".join(_option(*one) for one in options)
    if options:
        data += _option(_END, b"")
    length = pack("<I", 12 + len(data))
    return pack("<I", kind) + length + data + length


def _padded(data: bytes) -> bytes:
    return data + bytes(-len(data) % 4)


def _option(code: int, value: bytes) -> bytes:
    return pack("<HH", code, len(value)) + _padded(value)


def section(program: str) -> bytes:
    """Return the block with which a file begins."""
    body = pack("<IHHq", 0x1A2B3C4D, 1, 0, -1)
    return _block(_SHB, body, [(_SHB_USERAPPL, program.encode())])


def interface(name: str, description: str, snaplen: int) -> bytes:
    """Return the block of an interface; its number is how many came before."""
    options = [
        (_IF_NAME, name.encode()),
        (_IF_DESCRIPTION, description.encode()),
        (_IF_TSRESOL, bytes([_NANOSECONDS])),
    ]
    return _block(_IDB, pack("<HHI", _ETHERNET, 0, snaplen), options)


def packet(
    number: int, time_ns: int, frame: bytes, length: int, flags: int, comment: str
) -> bytes:
    """Return the block of a packet.

    Args:
        number: the interface's.
        time_ns: since 1970.
        frame: what was captured of it.
        length: of the whole frame.
        flags: INBOUND or OUTBOUND.
        comment: for the reader; none if empty.
    """
    high, low = divmod(time_ns, 1 << 32)
    body = pack("<IIIII", number, high % (1 << 32), low, len(frame), length) + frame
    options = [(_EPB_FLAGS, pack("<I", flags))]
    if comment:
        options.insert(0, (_COMMENT, comment.encode()))
    return _block(_EPB, body, options)


def statistics(
    number: int, time_ns: int, received: int, dropped: int | None, comment: str = ""
) -> bytes:
    """Return the block that says at the end how much an interface has missed."""
    high, low = divmod(time_ns, 1 << 32)
    options = [(_COMMENT, comment.encode())] if comment else []
    options.append((_ISB_IFRECV, pack("<Q", received)))
    if dropped is not None:
        options.append((_ISB_IFDROP, pack("<Q", dropped)))
    return _block(_ISB, pack("<III", number, high % (1 << 32), low), options)


def header_text(header: bytes) -> str:
    """Return a virtio-net header as text; empty if it says nothing.

    The master may write anything into it.
    """
    if len(header) < _HEADER.size:
        return ""
    flags, gso, hdr_len, size, start, offset = _HEADER.unpack_from(header)
    buffers = int.from_bytes(header[10:12], "little")
    if not any((flags, gso, hdr_len, size, start, offset)) and buffers < 2:
        return ""
    kind = _GSO.get(gso & ~_ECN, f"type {gso & ~_ECN}")
    words = [_FLAGS.get(1 << bit, f"bit {bit}") for bit in range(8) if flags >> bit & 1]
    text = f"virtio-net flags={'|'.join(words) or 'none'}"
    if flags & 1:
        text += f" csum_start={start} csum_offset={offset}"
    if gso:
        text += f" gso={kind}{'|ECN' if gso & _ECN else ''} gso_size={size}"
    text += f" hdr_len={hdr_len}" if hdr_len else ""
    return text + (f" num_buffers={buffers}" if len(header) >= 12 else "")

# SPDX-License-Identifier: Apache-2.0
"""The messages of vhost-user (QEMU's docs/interop/vhost-user.rst).

A message is a header, a payload, and file descriptors beside it.  The front-end
(the master's QEMU) sends requests; the back-end (we) replies.  All numbers are in
native byte order, as the specification says.  Names are the specification's.

`SHAPES` says for each request which payload and how many descriptors it carries.
Every parser raises `ProtocolError` or returns, whatever the bytes.
"""

from collections.abc import Sized
from dataclasses import dataclass
from enum import IntEnum, IntFlag
from struct import Struct
from typing import ClassVar, Protocol, Self

from .wire import ProtocolError, unpack

VERSION = 1
MAX_FDS = 8
"""Descriptors in one message at most ("Back-end communication", baseline regions)."""
MAX_TABLE_REGIONS = 8
"""Regions of SET_MEM_TABLE at most: one descriptor each."""
MAX_PAYLOAD = 4096
"""More than any request has; what claims more is no vhost-user message."""


class Request(IntEnum):
    """Requests of the front-end ("Front-end message types")."""

    GET_FEATURES = 1
    SET_FEATURES = 2
    SET_OWNER = 3
    RESET_OWNER = 4
    SET_MEM_TABLE = 5
    SET_LOG_BASE = 6
    SET_LOG_FD = 7
    SET_VRING_NUM = 8
    SET_VRING_ADDR = 9
    SET_VRING_BASE = 10
    GET_VRING_BASE = 11
    SET_VRING_KICK = 12
    SET_VRING_CALL = 13
    SET_VRING_ERR = 14
    GET_PROTOCOL_FEATURES = 15
    SET_PROTOCOL_FEATURES = 16
    GET_QUEUE_NUM = 17
    SET_VRING_ENABLE = 18
    SEND_RARP = 19
    NET_SET_MTU = 20
    SET_BACKEND_REQ_FD = 21
    IOTLB_MSG = 22
    SET_VRING_ENDIAN = 23
    GET_CONFIG = 24
    SET_CONFIG = 25
    CREATE_CRYPTO_SESSION = 26
    CLOSE_CRYPTO_SESSION = 27
    POSTCOPY_ADVISE = 28
    POSTCOPY_LISTEN = 29
    POSTCOPY_END = 30
    GET_INFLIGHT_FD = 31
    SET_INFLIGHT_FD = 32
    GPU_SET_SOCKET = 33
    RESET_DEVICE = 34
    VRING_KICK = 35
    GET_MAX_MEM_SLOTS = 36
    ADD_MEM_REG = 37
    REM_MEM_REG = 38
    SET_STATUS = 39
    GET_STATUS = 40
    GET_SHARED_OBJECT = 41
    SET_DEVICE_STATE_FD = 42
    CHECK_DEVICE_STATE = 43


class ProtocolFeature(IntFlag):
    """Extensions of the protocol ("Protocol features")."""

    MQ = 1 << 0
    LOG_SHMFD = 1 << 1
    RARP = 1 << 2
    REPLY_ACK = 1 << 3
    NET_MTU = 1 << 4
    BACKEND_REQ = 1 << 5
    CROSS_ENDIAN = 1 << 6
    CRYPTO_SESSION = 1 << 7
    PAGEFAULT = 1 << 8
    CONFIG = 1 << 9
    BACKEND_SEND_FD = 1 << 10
    HOST_NOTIFIER = 1 << 11
    INFLIGHT_SHMFD = 1 << 12
    RESET_DEVICE = 1 << 13
    INBAND_NOTIFICATIONS = 1 << 14
    CONFIGURE_MEM_SLOTS = 1 << 15
    STATUS = 1 << 16
    XEN_MMAP = 1 << 17
    SHARED_OBJECT = 1 << 18
    DEVICE_STATE = 1 << 19


class HeaderFlag(IntFlag):
    """The flags word, above the two bits of the version."""

    REPLY = 1 << 2
    NEED_REPLY = 1 << 3


@dataclass(frozen=True, slots=True)
class Header:
    """What every message starts with ("Header")."""

    request: int
    flags: int
    size: int

    layout: ClassVar = Struct("=III")

    @classmethod
    def parse(cls, data: bytes) -> Self:
        """Check the version, and that the payload's size is one that can be.

        Raises:
            ProtocolError: another version, or a payload larger than any.
        """
        header = cls(*unpack(cls.layout, data))
        if header.flags & 3 != VERSION:
            raise ProtocolError(
                f"vhost-user message of version {header.flags & 3}, not {VERSION}"
            )
        if header.size > MAX_PAYLOAD:
            raise ProtocolError(
                f"vhost-user message with {header.size} bytes of payload, "
                f"more than {MAX_PAYLOAD}"
            )
        return header

    @property
    def need_reply(self) -> bool:
        """Whether the sender waits for an answer (see REPLY_ACK)."""
        return bool(self.flags & HeaderFlag.NEED_REPLY)

    @property
    def name(self) -> str:
        """The request's name, for messages to people."""
        try:
            return Request(self.request).name
        except ValueError:
            return f"request {self.request}"

    def __bytes__(self) -> bytes:
        return self.layout.pack(self.request, self.flags, self.size)


class Payload(Protocol):
    """What the payload classes have in common."""

    @classmethod
    def parse(cls, data: bytes) -> Self:
        """Parse, or raise ProtocolError."""
        ...

    def __bytes__(self) -> bytes: ...


def message(request: int, payload: Payload | None = None, flags: int = 0) -> bytes:
    """Return a whole message; `flags` go on top of the version."""
    data = b"" if payload is None else bytes(payload)
    return bytes(Header(request, VERSION | flags, len(data))) + data


def reply(request: int, payload: Payload) -> bytes:
    """Return the reply to `request`; it says NEED_REPLY to nobody."""
    return message(request, payload, HeaderFlag.REPLY)


@dataclass(frozen=True, slots=True)
class Empty:
    """No payload."""

    @classmethod
    def parse(cls, data: bytes) -> Self:
        """Raise ProtocolError if there is one."""
        if data:
            raise ProtocolError(f"{len(data)} bytes where none are needed")
        return cls()

    def __bytes__(self) -> bytes:
        return b""


@dataclass(frozen=True, slots=True)
class U64:
    """ "A single 64-bit integer"."""

    value: int

    layout: ClassVar = Struct("=Q")

    @classmethod
    def parse(cls, data: bytes) -> Self:
        """Parse, or raise ProtocolError."""
        return cls(*unpack(cls.layout, data))

    def __bytes__(self) -> bytes:
        return self.layout.pack(self.value)


@dataclass(frozen=True, slots=True)
class VringState:
    """ "A vring state description": the index is 32 bits wide, and so checked."""

    index: int
    num: int

    layout: ClassVar = Struct("=II")

    @classmethod
    def parse(cls, data: bytes) -> Self:
        """Parse, or raise ProtocolError."""
        return cls(*unpack(cls.layout, data))

    def __bytes__(self) -> bytes:
        return self.layout.pack(self.index, self.num)


@dataclass(frozen=True, slots=True)
class VringFd:
    """The number in SET_VRING_KICK, _CALL and _ERR: an index, and "no descriptor"."""

    index: int
    nofd: bool = False

    layout: ClassVar = Struct("=Q")

    @classmethod
    def parse(cls, data: bytes) -> Self:
        """Check that no bit is set that has no meaning.

        An index past 255 would set one, and must not be cut to fit.

        Raises:
            ProtocolError: it has such a bit, or another length.
        """
        (value,) = unpack(cls.layout, data)
        if value >> 9:
            raise ProtocolError(f"vring index and flags {value:#x} use unknown bits")
        return cls(value & 0xFF, bool(value & 0x100))

    def __bytes__(self) -> bytes:
        return self.layout.pack(self.index | self.nofd << 8)


@dataclass(frozen=True, slots=True)
class VringAddr:
    """ "A vring address description": user addresses of the ring's three areas."""

    index: int
    flags: int
    desc: int
    used: int
    avail: int
    log: int = 0

    layout: ClassVar = Struct("=IIQQQQ")

    @classmethod
    def parse(cls, data: bytes) -> Self:
        """Parse, or raise ProtocolError."""
        return cls(*unpack(cls.layout, data))

    def __bytes__(self) -> bytes:
        return self.layout.pack(
            self.index, self.flags, self.desc, self.used, self.avail, self.log
        )


@dataclass(frozen=True, slots=True)
class MemRegion:
    """One of the "Memory regions description".

    Descriptors hold addresses counted from `guest_addr`.  Only SET_VRING_ADDR
    counts from `user_addr`: the same bytes, where QEMU itself has them.
    """

    guest_addr: int
    size: int
    user_addr: int
    mmap_offset: int

    layout: ClassVar = Struct("=QQQQ")

    @classmethod
    def parse(cls, data: bytes) -> Self:
        """Check that none of the three ranges is empty or wraps.

        Raises:
            ProtocolError: one is empty or wraps.
        """
        region = cls(*unpack(cls.layout, data))
        last = max(region.guest_addr, region.user_addr, region.mmap_offset)
        if not 0 < region.size <= 2**64 - last:
            raise ProtocolError(f"memory region is empty or wraps: {region}")
        return region

    def __bytes__(self) -> bytes:
        return self.layout.pack(
            self.guest_addr, self.size, self.user_addr, self.mmap_offset
        )


@dataclass(frozen=True, slots=True)
class MemTable:
    """ "Memory regions description": a count, and as many regions."""

    regions: tuple[MemRegion, ...]

    layout: ClassVar = Struct("=I4x")

    @classmethod
    def parse(cls, data: bytes) -> Self:
        """Parse as many regions as are counted; the rest of the array is ignored.

        User Mode Linux sends its whole array, used or not.

        Raises:
            ProtocolError: more regions than can be, or than there are.
        """
        start, size = cls.layout.size, MemRegion.layout.size
        (count,) = unpack(cls.layout, data[:start])
        room, rest = divmod(len(data) - start, size)
        if count > room or room > MAX_TABLE_REGIONS or rest:
            raise ProtocolError(
                f"memory table of {count} regions in {len(data)} bytes; "
                f"at most {MAX_TABLE_REGIONS}"
            )
        ends = range(start + size, start + (count + 1) * size, size)
        return cls(tuple(MemRegion.parse(data[end - size : end]) for end in ends))

    def __bytes__(self) -> bytes:
        return self.layout.pack(len(self.regions)) + b"".join(map(bytes, self.regions))


@dataclass(frozen=True, slots=True)
class SingleRegion:
    """ "Single memory region description"."""

    region: MemRegion

    layout: ClassVar = Struct("=8x")

    @classmethod
    def parse(cls, data: bytes) -> Self:
        """Parse, or raise ProtocolError."""
        return cls(MemRegion.parse(data[cls.layout.size :]))

    def __bytes__(self) -> bytes:
        return self.layout.pack() + bytes(self.region)


@dataclass(frozen=True, slots=True)
class Log:
    """ "Log description"."""

    size: int
    offset: int

    layout: ClassVar = Struct("=QQ")

    @classmethod
    def parse(cls, data: bytes) -> Self:
        """Check that the log is not empty and does not wrap.

        Raises:
            ProtocolError: it is empty or wraps.
        """
        log = cls(*unpack(cls.layout, data))
        if not 0 < log.size <= 2**64 - log.offset:
            raise ProtocolError(f"log is empty or wraps: {log}")
        return log

    def __bytes__(self) -> bytes:
        return self.layout.pack(self.size, self.offset)


@dataclass(frozen=True, slots=True)
class Shape:
    """What a request carries: its payload, and how many descriptors."""

    payload: type[Payload]
    min_fds: int = 0
    max_fds: int = 0

    def check_fds(self, fds: Sized) -> None:
        """Raise ProtocolError if there are too few or too many."""
        if not self.min_fds <= len(fds) <= self.max_fds:
            raise ProtocolError(
                f"{len(fds)} descriptors where {self.min_fds} to {self.max_fds} belong"
            )


SHAPES: dict[Request, Shape] = {
    Request.GET_FEATURES: Shape(Empty),
    Request.SET_FEATURES: Shape(U64),
    Request.SET_OWNER: Shape(Empty),
    Request.RESET_OWNER: Shape(Empty),
    Request.SET_MEM_TABLE: Shape(MemTable, 0, MAX_TABLE_REGIONS),
    Request.SET_LOG_BASE: Shape(Log, 0, 1),
    Request.SET_LOG_FD: Shape(Empty, 1, 1),
    Request.SET_VRING_NUM: Shape(VringState),
    Request.SET_VRING_ADDR: Shape(VringAddr),
    Request.SET_VRING_BASE: Shape(VringState),
    Request.GET_VRING_BASE: Shape(VringState),
    Request.SET_VRING_KICK: Shape(VringFd, 0, 1),
    Request.SET_VRING_CALL: Shape(VringFd, 0, 1),
    Request.SET_VRING_ERR: Shape(VringFd, 0, 1),
    Request.GET_PROTOCOL_FEATURES: Shape(Empty),
    Request.SET_PROTOCOL_FEATURES: Shape(U64),
    Request.GET_QUEUE_NUM: Shape(Empty),
    Request.SET_VRING_ENABLE: Shape(VringState),
    Request.SEND_RARP: Shape(U64),
    Request.NET_SET_MTU: Shape(U64),
    Request.SET_BACKEND_REQ_FD: Shape(Empty, 1, 1),
    Request.RESET_DEVICE: Shape(Empty),
    Request.GET_MAX_MEM_SLOTS: Shape(Empty),
    Request.ADD_MEM_REG: Shape(SingleRegion, 1, 1),
    # "the back-end MAY accept messages with one file descriptor": QEMU 5 and 6.
    Request.REM_MEM_REG: Shape(SingleRegion, 0, 1),
}

REPLIES: frozenset[Request] = frozenset(
    {
        Request.GET_FEATURES,
        Request.GET_PROTOCOL_FEATURES,
        Request.GET_VRING_BASE,
        Request.GET_QUEUE_NUM,
        Request.GET_CONFIG,
        Request.GET_INFLIGHT_FD,
        Request.GET_MAX_MEM_SLOTS,
        Request.GET_STATUS,
    }
)
"""Requests with a reply of their own, which NEED_REPLY does not change."""

# SPDX-License-Identifier: Apache-2.0
"""The messages of vhost-user (QEMU's docs/interop/vhost-user.rst).

A message is a header, a payload, and file descriptors that the socket carries beside
the bytes.  The front-end (the master's QEMU) sends requests, and the back-end (the
daemon) replies.  Requests, flags and payloads have the specification's names.

`SHAPES` says for each request which payload and how many descriptors it carries.
Every parser takes any bytes: it returns a checked value or raises `ProtocolError`.
"""

from collections.abc import Sized
from dataclasses import dataclass
from enum import IntEnum, IntFlag
from struct import Struct
from typing import ClassVar, Protocol, Self

from .wire import ProtocolError, unpack

# Every layout below starts with "=": the specification wants numbers in the byte
# order of the machine, since both ends of a Unix socket are on one machine.  "=" also
# turns off the padding that "@" would add; where the specification has padding, the
# layout says so with "4x" or "8x".

VERSION = 1
# A message carries at most eight descriptors, one for each region of SET_MEM_TABLE
# (QEMU's VHOST_MEMORY_BASELINE_NREGIONS).
MAX_FDS = 8
MAX_TABLE_REGIONS = 8
# No request of the specification has a payload as large as this.  The bound keeps a
# front-end from making the daemon wait for, and buffer, four gigabytes.
MAX_PAYLOAD = 4096


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
    GET_VRING_BASE_INFLIGHT = 1 << 20
    GPA_ADDRESSES = 1 << 21
    SHMEM_MAP = 1 << 22


class HeaderFlag(IntFlag):
    """Bits of the header's flags; bits 0 and 1 are the version, not flags."""

    REPLY = 1 << 2
    NEED_REPLY = 1 << 3


@dataclass(frozen=True, slots=True)
class Header:
    """The twelve bytes that every message starts with ("Header")."""

    request: int
    flags: int
    size: int

    layout: ClassVar = Struct("=III")

    @classmethod
    def parse(cls, data: bytes) -> Self:
        """Parse a header, and check its version and the size of its payload.

        Raises:
            ProtocolError: the version is not 1, or no request has so large a payload.
        """
        header = cls(*unpack(cls.layout, data))
        # Flags that we do not know are allowed: they do not change how a message is
        # parsed, and a newer front-end may set some.
        if header.flags & 3 != VERSION:
            raise ProtocolError(
                f"vhost-user message of version {header.flags & 3}, not {VERSION}",
                code="P016",
            )
        if header.size > MAX_PAYLOAD:
            raise ProtocolError(
                f"vhost-user message with {header.size} bytes of payload, "
                f"more than {MAX_PAYLOAD}",
                code="P017",
            )
        return header

    @property
    def need_reply(self) -> bool:
        """Whether the sender waits for a reply, as REPLY_ACK lets it ask."""
        return bool(self.flags & HeaderFlag.NEED_REPLY)

    @property
    def name(self) -> str:
        """The request's name for logs and errors; its number if it has none."""
        try:
            return Request(self.request).name
        except ValueError:
            return f"request {self.request}"

    def __bytes__(self) -> bytes:
        return self.layout.pack(self.request, self.flags, self.size)


class Payload(Protocol):
    """The interface of all payload classes: from bytes, and to bytes."""

    @classmethod
    def parse(cls, data: bytes) -> Self:
        """Parse a whole payload, or raise ProtocolError."""
        ...

    def __bytes__(self) -> bytes: ...


def message(request: int, payload: Payload | None = None, flags: int = 0) -> bytes:
    """Return the bytes of a whole message; the header adds the version to `flags`."""
    data = b"" if payload is None else bytes(payload)
    return bytes(Header(request, VERSION | flags, len(data))) + data


def reply(request: int, payload: Payload) -> bytes:
    """Return the bytes of the reply to `request`."""
    # No other flag may be set: QEMU compares the flags with exactly version and REPLY.
    return message(request, payload, HeaderFlag.REPLY)


@dataclass(frozen=True, slots=True)
class Empty:
    """The payload of a request that has none."""

    @classmethod
    def parse(cls, data: bytes) -> Self:
        """Check that there are no bytes.

        Raises:
            ProtocolError: there are some.
        """
        if data:
            raise ProtocolError(f"{len(data)} bytes where none are needed", code="P018")
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
    """ "A vring state description": a ring's index, and a number for it."""

    # 32 bits wide, so it may be far beyond the rings of the device: the back-end
    # compares the whole number before it uses it as an index.
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
    """The payload of SET_VRING_KICK, SET_VRING_CALL and SET_VRING_ERR.

    `nofd` says that no descriptor comes with the message: the ring is to be polled.
    """

    index: int
    nofd: bool = False

    layout: ClassVar = Struct("=Q")

    @classmethod
    def parse(cls, data: bytes) -> Self:
        """Parse the index (bits 0 to 7) and the "invalid FD" flag (bit 8).

        Raises:
            ProtocolError: a bit above those is set, or the length is not 8.
        """
        (value,) = unpack(cls.layout, data)
        # Masking alone would turn index 256 + 1 into index 1, and the descriptor
        # would go to another ring than the front-end meant.
        if value >> 9:
            raise ProtocolError(
                f"vring index and flags {value:#x} use unknown bits", code="P019"
            )
        return cls(value & 0xFF, bool(value & 0x100))

    def __bytes__(self) -> bytes:
        return self.layout.pack(self.index | self.nofd << 8)


@dataclass(frozen=True, slots=True)
class VringAddr:
    """ "A vring address description": where the three areas of a ring lie.

    The addresses count from `MemRegion.user_addr`, not from `MemRegion.guest_addr`.
    """

    index: int
    flags: int  # bit 0: log writes to the used ring, from guest address `log` on
    desc: int
    # The specification has `used` before `avail`, unlike VIRTIO's own order.
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
    """One region of the master's memory ("Memory regions description").

    Descriptors of a ring hold addresses that count from `guest_addr`.  Only
    SET_VRING_ADDR counts from `user_addr`, where QEMU itself maps the same bytes.
    """

    guest_addr: int
    size: int
    user_addr: int
    mmap_offset: int

    layout: ClassVar = Struct("=QQQQ")

    @classmethod
    def parse(cls, data: bytes) -> Self:
        """Parse a region, and check its three ranges.

        Raises:
            ProtocolError: a range is empty, or goes beyond 2^64.
        """
        region = cls(*unpack(cls.layout, data))
        # The same `size` follows each of the three starts, so the highest start
        # decides.  A range may end exactly at 2^64.
        last = max(region.guest_addr, region.user_addr, region.mmap_offset)
        if not 0 < region.size <= 2**64 - last:
            raise ProtocolError(
                f"memory region is empty or wraps: {region}", code="P020"
            )
        return region

    def __bytes__(self) -> bytes:
        return self.layout.pack(
            self.guest_addr, self.size, self.user_addr, self.mmap_offset
        )


@dataclass(frozen=True, slots=True)
class MemTable:
    """The payload of SET_MEM_TABLE: a count, and an array of regions."""

    regions: tuple[MemRegion, ...]

    layout: ClassVar = Struct("=I4x")

    @classmethod
    def parse(cls, data: bytes) -> Self:
        """Parse as many regions as the table counts.

        Raises:
            ProtocolError: the table counts more regions than it has or than a
                message has descriptors, or ends within a region.
        """
        start, size = cls.layout.size, MemRegion.layout.size
        (count,) = unpack(cls.layout, data[:start])
        room, rest = divmod(len(data) - start, size)
        # Entries beyond the count are allowed and ignored: User Mode Linux sends its
        # whole array, used or not.
        if count > room or room > MAX_TABLE_REGIONS or rest:
            raise ProtocolError(
                f"memory table of {count} regions in {len(data)} bytes; "
                f"at most {MAX_TABLE_REGIONS}",
                code="P021",
            )
        ends = range(start + size, start + (count + 1) * size, size)
        return cls(tuple(MemRegion.parse(data[end - size : end]) for end in ends))

    def __bytes__(self) -> bytes:
        return self.layout.pack(len(self.regions)) + b"".join(map(bytes, self.regions))


@dataclass(frozen=True, slots=True)
class SingleRegion:
    """The payload of ADD_MEM_REG and REM_MEM_REG: padding, and one region."""

    region: MemRegion

    # The specification has a 64-bit padding word where SET_MEM_TABLE has its count.
    layout: ClassVar = Struct("=8x")

    @classmethod
    def parse(cls, data: bytes) -> Self:
        """Parse, or raise ProtocolError."""
        # Without the padding, the rest is shorter than a region and is refused.
        return cls(MemRegion.parse(data[cls.layout.size :]))

    def __bytes__(self) -> bytes:
        return self.layout.pack() + bytes(self.region)


@dataclass(frozen=True, slots=True)
class Log:
    """ "Log description": where the dirty log lies in its descriptor's file."""

    size: int
    offset: int

    layout: ClassVar = Struct("=QQ")

    @classmethod
    def parse(cls, data: bytes) -> Self:
        """Parse a log description, and check its range.

        Raises:
            ProtocolError: the range is empty, or goes beyond 2^64.
        """
        log = cls(*unpack(cls.layout, data))
        if not 0 < log.size <= 2**64 - log.offset:
            raise ProtocolError(f"log is empty or wraps: {log}", code="P022")
        return log

    def __bytes__(self) -> bytes:
        return self.layout.pack(self.size, self.offset)


@dataclass(frozen=True, slots=True)
class Shape:
    """What a request carries: the type of its payload, and how many descriptors."""

    payload: type[Payload]
    min_fds: int = 0
    max_fds: int = 0

    def check_fds(self, fds: Sized) -> None:
        """Check the number of descriptors that came with the request.

        Raises:
            ProtocolError: there are too few or too many.
        """
        # Too many matter as much as too few: a handler takes the first, and the
        # others would only be closed, which hides a front-end's mistake.
        if not self.min_fds <= len(fds) <= self.max_fds:
            raise ProtocolError(
                f"{len(fds)} descriptors where {self.min_fds} to {self.max_fds} belong",
                code="P023",
            )


# Only the requests that the daemon can serve.  SET_LOG_BASE and SET_LOG_FD have no
# handler yet: the dirty log, which live migration needs, is to come.
SHAPES: dict[Request, Shape] = {
    Request.GET_FEATURES: Shape(Empty),
    Request.SET_FEATURES: Shape(U64),
    Request.SET_OWNER: Shape(Empty),
    Request.RESET_OWNER: Shape(Empty),
    # Exactly one descriptor for each region; the handler compares the two counts.
    Request.SET_MEM_TABLE: Shape(MemTable, 0, MAX_TABLE_REGIONS),
    # The descriptor comes only if LOG_SHMFD was negotiated.
    Request.SET_LOG_BASE: Shape(Log, 0, 1),
    Request.SET_LOG_FD: Shape(Empty, 1, 1),
    Request.SET_VRING_NUM: Shape(VringState),
    Request.SET_VRING_ADDR: Shape(VringAddr),
    Request.SET_VRING_BASE: Shape(VringState),
    Request.GET_VRING_BASE: Shape(VringState),
    # No descriptor belongs to a payload with `nofd` set; the handler compares them.
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
    # QEMU 5 and 6 send a descriptor here too, and the specification lets a back-end
    # take it ("the back-end MAY accept messages with one file descriptor").
    Request.REM_MEM_REG: Shape(SingleRegion, 0, 1),
}

# These requests always have a reply.  NEED_REPLY changes nothing for them: a
# second reply, with a plain yes or no, would be taken for the next request's.
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

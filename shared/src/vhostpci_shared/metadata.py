# SPDX-License-Identifier: Apache-2.0
"""The layout of the metadata region, version 1.

The region is how the daemon tells the agent which device to serve, and how the agent
tells the daemon how far it has come.  It fills the last 64 KiB of window 0.
`docs/metadata.md` specifies it, and a test compares this module with that text.
`Position` is in `position.py`, `About` in `about.py`.
`guest/ring/ring_api.h` repeats `Ring` and `Position`, the entries that C uses (a test
compares them)::

    0x0000  Header          magic, version, generation, heartbeat   daemon writes
    0x0040  Device          what holds for the whole device             "
    0x00a0  Confined        how much of the master's memory there is    "
    0x1000  Region[256]     the master's memory                         "
    0x3000  Ring[64]        the master's virtqueues                     "
    0x8000  Agent           who serves the device, and how far          agent writes
    0x9000  AgentRing[64]   where each ring stands                      "
    0xa000  Position[64]    where each packed ring goes on              "
    0xb000  About           what the agent tells people of itself       "

Bytes that have no name are written as zero and never read, so that a later version
can use them.  Each side treats what the other wrote as hostile: every parser here takes
any bytes, and returns a checked value or raises `ProtocolError`.
"""

from dataclasses import dataclass
from enum import IntEnum, IntFlag
from struct import Struct
from typing import ClassVar, Self, TypeVar

from .metadata_numbers import FIRST_KICK_VECTOR as FIRST_KICK_VECTOR
from .metadata_numbers import FIRST_WINDOW as FIRST_WINDOW
from .metadata_numbers import LAST_WINDOW as LAST_WINDOW
from .metadata_numbers import MAX_RINGS as MAX_RINGS
from .metadata_numbers import SIZE as SIZE
from .metadata_numbers import SLAVE_ID as SLAVE_ID
from .virtio import MAX_SPLIT_SIZE
from .wire import ProtocolError, unpack

# Every layout below starts with "<": little-endian, without padding that is not
# spelled out: unlike vhost-user's, the byte order is part of the format.  Each field is
# aligned to its size within its entry, and each entry to eight bytes, so that a 64-bit
# word can be stored and loaded whole.

MAGIC = b"VHOSTPCI"
VERSION = 1

# What the daemon writes and what the agent writes lie in different pages.
HEADER = 0x0000
DEVICE = 0x0040
CONFINED = 0x00A0
REGIONS = 0x1000
RINGS = 0x3000
DAEMON_END = 0x4000
AGENT = 0x8000
AGENT_RINGS = 0x9000
POSITIONS = 0xA000
ABOUT = 0xB000

MAX_REGIONS = 256
MAX_RING_SIZE = MAX_SPLIT_SIZE

# The ivshmem peer whose doorbell tells the daemon that the agent's part has changed.
DAEMON_PEER = 1
# The first peer ID for a set of the master's call eventfds.  Each new set gets a new
# ID: QEMU frees the array of a peer twice if its ID comes back (2.5 to at least 10.2).
FIRST_CALL_PEER = 2
# The slave's interrupt vector for "the metadata has changed".
METADATA_VECTOR = 0
# Words that are loaded or stored alone, outside the entry that they belong to.
GENERATION_OFFSET = HEADER + 0x10
HEARTBEAT_OFFSET = HEADER + 0x18
AGENT_GENERATION_OFFSET = AGENT + 0x10


class OtherVersion(ProtocolError):
    """The daemon's metadata has another version than ours; says which side is older.

    Args:
        version: that of the metadata.
    """

    def __init__(self, version: int) -> None:
        older = (
            "vhostpci-guest in the slave"
            if version > VERSION
            else "vhostpci-host on the hypervisor"
        )
        # An agent has 183 bytes for it.
        super().__init__(
            f"the daemon's metadata version is {version}, the agent knows version "
            f"{VERSION}: update {older}",
            code="P008",
        )


class RingFlag(IntFlag):
    """State of a ring, as the daemon knows it from the front-end."""

    STARTED = 1  # the front-end has set the ring up: its addresses are valid
    ENABLED = 2  # SET_VRING_ENABLE 1
    CALL = 4  # call_peer and call_vector are valid; without it the driver polls
    PACKED = 8  # the ring has the layout of VIRTIO_F_RING_PACKED
    POLL = 16  # no kick comes: the agent looks at the ring by itself
    RESUME = 32  # it starts where it stands, not at `base`, if an agent has worked it

    @classmethod
    def known(cls, value: int) -> Self:
        """Return the flags in `value` that version 1 has."""
        # A later daemon of version 1 may set more bits; they must not be an error.
        return cls(value & 63)


class DeviceFlag(IntFlag):
    """State of the device as a whole."""

    MASTER = 1  # a front-end is connected
    SLAVE = 2  # a slave is connected: its vectors and doorbells lead somewhere
    KEPT = 4  # the front-end's connection outlives the daemon's process

    @classmethod
    def known(cls, value: int) -> Self:
        """Return the flags in `value` that version 1 has."""
        return cls(value & 7)


class AgentState(IntEnum):
    """Whether an agent serves the device, in its own words."""

    NONE = 0  # no agent yet, or it has ended and let the daemon know
    READY = 1  # it serves the device
    FAILED = 2  # it cannot serve the device; `Agent.message` says why
    # In these two it follows the daemon as if it were READY, and runs no ring.
    WAITING = 3  # for what `Agent.message` says, such as another back-end
    MISMATCH = 4  # the master's driver acknowledged what its data plane cannot serve


class AgentFlag(IntFlag):
    """What the agent has seen of the slave, and which of its fields are valid."""

    USO = 1  # its TAP knows UDP packets with GSO: Linux 6.2 or later
    OFFERS = 2  # `Agent.offers` is known

    @classmethod
    def known(cls, value: int) -> Self:
        """Return the flags in `value` that version 1 has."""
        return cls(value & 3)


NO_AGENT_FLAGS = AgentFlag(0)


class AgentRingState(IntEnum):
    """What the agent does with one ring."""

    IDLE = 0  # it has not served the ring in this session
    RUNNING = 1
    STOPPED = 2  # the daemon wanted it to stop; `AgentRing.index` says where it did
    BROKEN = 3  # the master's driver broke the rules of the ring
    FENCED = 4  # the ring has another owner: a new session, or a moved used index


@dataclass(frozen=True, slots=True)
class Header:
    """The start of the region, which has this layout in every version."""

    magic: bytes
    version: int
    length: int
    # The seqlock: odd while the daemon writes, and two more after each change.
    generation: int
    # Grows while the daemon lives; outside the seqlock.
    heartbeat: int

    layout: ClassVar = Struct("<8sIIQQ")

    @classmethod
    def parse(cls, data: bytes) -> Self:
        """Parse the header, and check magic, version and length.

        Raises:
            ProtocolError: the memory is no metadata region, or one of a version other
                than 1.
        """
        header = cls(*unpack(cls.layout, data))
        # In this order, so that the error names the real cause: memory of another
        # ivshmem device has an arbitrary version, a later version another length.
        if header.magic != MAGIC:
            raise ProtocolError(
                f"no vhostpci metadata: it starts with {header.magic!r}, "
                f"not {MAGIC!r}; is the device served by vhostpci-host?",
                code="P009",
            )
        if header.version != VERSION:
            raise OtherVersion(header.version)
        if header.length != SIZE:
            raise ProtocolError(
                f"metadata length {header.length:#x}, not {SIZE:#x}", code="P010"
            )
        return header

    def __bytes__(self) -> bytes:
        return self.layout.pack(
            self.magic, self.version, self.length, self.generation, self.heartbeat
        )


_State = TypeVar("_State", AgentState, AgentRingState)


def _state(kind: type[_State], value: int) -> _State:
    """Return `value` as a `kind`, or raise ProtocolError."""
    try:
        return kind(value)
    except ValueError:
        known = ", ".join(f"{state.value} {state.name}" for state in kind)
        raise ProtocolError(
            f"{kind.__name__} {value} is none of those in the metadata's version "
            f"{VERSION}: {known}",
            code="P011",
        ) from None


def safe_text(data: bytes) -> str:
    """Return the text before the first NUL, made safe for a terminal and a log."""
    # The other side chose the bytes.  Escape sequences and line ends would let it
    # write log lines of other devices.
    text = data.split(b"\0", 1)[0].decode("utf-8", "replace")
    return "".join(c if c.isprintable() else "\N{REPLACEMENT CHARACTER}" for c in text)


def limited_bytes(text: str, size: int) -> bytes:
    """Encode `text`, cut to at most `size` bytes between two characters."""
    return text.encode()[:size].decode("utf-8", "ignore").encode()


@dataclass(frozen=True, slots=True, kw_only=True)
class Device:
    """What the daemon tells of the device as a whole."""

    instance: int  # random, new for each daemon process
    features: int  # virtio features that the master's driver acknowledged; 0 before
    flags: DeviceFlag
    queue_pairs: int
    vectors: int  # how many the slave's ivshmem device must have
    daemon_peer: int
    mtu: int  # in bytes; 0 if the front-end sent none
    region_count: int
    ring_count: int
    name: str

    layout: ClassVar = Struct("<QQIHHHHHH64s")

    @classmethod
    def parse(cls, data: bytes) -> Self:
        """Parse the entry, and check the counts against the sizes of the tables.

        Raises:
            ProtocolError: a table is too small for its count, the number of rings is
                not twice that of queue pairs, or there are too few vectors.
        """
        fields = unpack(cls.layout, data)
        instance, features, flags, pairs, vectors, peer, mtu, regions, rings = fields[
            :9
        ]
        if regions > MAX_REGIONS or rings > MAX_RINGS or rings != 2 * pairs:
            raise ProtocolError(
                f"metadata counts {regions} regions (at most {MAX_REGIONS}) and "
                f"{rings} rings of {pairs} queue pairs (at most {MAX_RINGS})",
                code="P012",
            )
        # Each ring has a kick vector behind that of the metadata.  With fewer, the
        # agent would wait for kicks on vectors that its device does not have.
        if vectors < FIRST_KICK_VECTOR + rings:
            raise ProtocolError(
                f"metadata has {vectors} vectors for {rings} rings", code="P013"
            )
        return cls(
            instance=instance,
            features=features,
            flags=DeviceFlag.known(flags),
            queue_pairs=pairs,
            vectors=vectors,
            daemon_peer=peer,
            mtu=mtu,
            region_count=regions,
            ring_count=rings,
            name=safe_text(fields[9]),
        )

    def __bytes__(self) -> bytes:
        return self.layout.pack(
            self.instance,
            self.features,
            self.flags,
            self.queue_pairs,
            self.vectors,
            self.daemon_peer,
            self.mtu,
            self.region_count,
            self.ring_count,
            limited_bytes(self.name, 64),
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class Confined:
    """How much of a confined master's memory the slave has; the agent only shows it."""

    shared: int = 0  # bytes that the daemon lets be shared; 0: it is not confined
    memory: int = 0  # the master's whole memory; 0: the daemon does not know it

    layout: ClassVar = Struct("<QQ")

    @classmethod
    def parse(cls, data: bytes) -> Self:
        """Parse the entry, which may say anything."""
        shared, memory = unpack(cls.layout, data)
        return cls(shared=shared, memory=memory)

    def __bytes__(self) -> bytes:
        return self.layout.pack(self.shared, self.memory)


NOT_CONFINED = Confined()


@dataclass(frozen=True, slots=True)
class Region:
    """One range of the master's memory: its guest address, and its place in a window.

    Whether the range lies within its window is for the agent to check: only it knows
    the sizes of its windows.
    """

    guest_addr: int
    size: int
    window: int
    offset: int

    # Four bytes of padding keep `offset` aligned to its own eight bytes.
    layout: ClassVar = Struct("<QQI4xQ")

    @classmethod
    def parse(cls, data: bytes) -> Self:
        """Parse the entry, and check both ranges.

        Raises:
            ProtocolError: a range is empty, or goes beyond 2^64.
        """
        region = cls(*unpack(cls.layout, data))
        # The same `size` follows both starts, so the higher one decides.
        if not 0 < region.size <= 2**64 - max(region.guest_addr, region.offset):
            raise ProtocolError(f"region is empty or wraps: {region}", code="P014")
        return region

    def __bytes__(self) -> bytes:
        return self.layout.pack(self.guest_addr, self.size, self.window, self.offset)


@dataclass(frozen=True, slots=True, kw_only=True)
class Ring:
    """A virtqueue of the master, and who may use it.

    `desc`, `driver` and `device` are the guest physical addresses of its three areas
    (VIRTIO, "Split Virtqueues").
    """

    # First in the entry, where the ring driver compares it for each batch of packets.
    # The daemon gives the ring a new session whenever the owner may change.
    session: int
    flags: RingFlag
    size: int
    desc: int
    driver: int
    device: int
    # Where to start: a split ring's used index, 0 with RESUME; a packed one's position.
    base: int
    kick_vector: int
    call_peer: int
    call_vector: int
    # 0: `kick_vector` is one of the slave's own; else it is one of this peer's, and its
    # eventfd is the kick itself.
    kick_peer: int = 0
    # The session since which the ring has had this base.  A new one that only gives the
    # ring to another agent leaves it as it is.
    origin: int = 0

    # 64 bytes, a cache line: the words of two rings never share one.
    layout: ClassVar = Struct("<QIIQQQIHHHH4xQ")

    @classmethod
    def parse(cls, data: bytes) -> Self:
        """Parse the entry, and check the size of a ring that is started.

        The addresses are checked by the ring driver, which knows the master's memory.

        Raises:
            ProtocolError: the ring is started, and no virtqueue has that size.
        """
        session, flags, size, *rest = unpack(cls.layout, data)
        desc, driver, device, base, kick_vector, *peers, origin = rest
        call_peer, call_vector, kick_peer = peers
        # A ring that is not started yet has size 0.
        if flags & RingFlag.STARTED and not 0 < size <= MAX_RING_SIZE:
            raise ProtocolError(
                f"ring size {size}, not 1 to {MAX_RING_SIZE}", code="P015"
            )
        return cls(
            session=session,
            flags=RingFlag.known(flags),
            size=size,
            desc=desc,
            driver=driver,
            device=device,
            base=base,
            kick_vector=kick_vector,
            call_peer=call_peer,
            call_vector=call_vector,
            kick_peer=kick_peer,
            origin=origin,
        )

    @property
    def runs(self) -> bool:
        """Whether the agent is to serve the ring: it is started and enabled."""
        wanted = RingFlag.STARTED | RingFlag.ENABLED
        return self.flags & wanted == wanted

    def __bytes__(self) -> bytes:
        return self.layout.pack(
            self.session,
            self.flags,
            self.size,
            self.desc,
            self.driver,
            self.device,
            self.base,
            self.kick_vector,
            self.call_peer,
            self.call_vector,
            self.kick_peer,
            self.origin,
        )


@dataclass(frozen=True, slots=True)
class Snapshot:
    """The daemon's whole part, as it was at one even `generation`."""

    generation: int
    device: Device
    regions: tuple[Region, ...]
    rings: tuple[Ring, ...]
    confined: Confined = NOT_CONFINED

    @classmethod
    def parse(cls, generation: int, data: bytes) -> Self:
        """Parse the first `DAEMON_END` bytes of the region, copied under the seqlock.

        Raises:
            ProtocolError: an entry is invalid.
        """
        # The device comes first: it checks the counts by which the tables are cut.
        device = Device.parse(data[DEVICE : DEVICE + Device.layout.size])
        regions = _table(Region, data, REGIONS, device.region_count)
        rings = _table(Ring, data, RINGS, device.ring_count)
        end = CONFINED + Confined.layout.size
        confined = Confined.parse(data[CONFINED:end])
        return cls(generation, device, regions, rings, confined)


_Entry = TypeVar("_Entry", Region, Ring)


def _table(
    kind: type[_Entry], data: bytes, start: int, count: int
) -> tuple[_Entry, ...]:
    """Parse the first `count` entries of the table at `start`."""
    size = kind.layout.size
    return tuple(
        kind.parse(data[at : at + size])
        for at in range(start, start + count * size, size)
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class Agent:
    """What the agent tells of itself."""

    instance: int = 0  # random, new for each agent process
    heartbeat: int = 0  # grows while the agent lives
    # The agent's answer: it touches no ring that is not to run in this generation of
    # the daemon's.
    generation: int = 0
    state: AgentState = AgentState.NONE
    vectors: int = 0  # how many its ivshmem device has
    flags: AgentFlag = NO_AGENT_FLAGS  # none before it has a TAP
    binding: str = ""  # how it reaches the device: kmod, vfio, uio, sysfs or socket
    message: str = ""
    data_plane: str = ""  # what moves its packets: ring, vhost-net or vhost-user
    offers: int = 0  # with OFFERS: the virtio features that its data plane can serve

    # 256 bytes: the texts fill the entry up.
    layout: ClassVar = Struct("<QQQIHH16s184s16sQ")

    @classmethod
    def parse(cls, data: bytes) -> Self:
        """Parse the entry; the agent's state is all that can be invalid in it.

        Raises:
            ProtocolError: version 1 has no such state.
        """
        fields = unpack(cls.layout, data)
        instance, heartbeat, generation, state, vectors, flags = fields[:6]
        return cls(
            instance=instance,
            heartbeat=heartbeat,
            generation=generation,
            state=_state(AgentState, state),
            vectors=vectors,
            flags=AgentFlag.known(flags),
            binding=safe_text(fields[6]),
            message=safe_text(fields[7]),
            data_plane=safe_text(fields[8]),
            offers=fields[9],
        )

    def __bytes__(self) -> bytes:
        return self.layout.pack(
            self.instance,
            self.heartbeat,
            self.generation,
            self.state,
            self.vectors,
            self.flags,
            limited_bytes(self.binding, 16),
            # One byte less than there is room for: the text had more room in the first
            # releases of version 1, and their reader needs the NUL.
            limited_bytes(self.message, 183),
            limited_bytes(self.data_plane, 16),
            self.offers,
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class AgentRing:
    """How far the agent has come in one ring; the counts start with the agent."""

    session: int = 0  # the session of the ring that the rest is about
    state: AgentRingState = AgentRingState.IDLE
    index: int = 0  # the used index that it wrote last, or a packed ring's position
    packets: int = 0
    octets: int = 0  # of the packets, without their virtio-net headers
    drops: int = 0
    kicks: int = 0
    calls: int = 0

    layout: ClassVar = Struct("<QIIQQQQQ8x")

    @classmethod
    def parse(cls, data: bytes) -> Self:
        """Parse the entry; the ring's state is all that can be invalid in it.

        Raises:
            ProtocolError: version 1 has no such state.
        """
        # The daemon only shows the other numbers, so none of them needs a check: it
        # reads the used index that it answers GET_VRING_BASE with from the ring itself.
        session, state, index, packets, size, drops, kicks, calls = unpack(
            cls.layout, data
        )
        return cls(
            session=session,
            state=_state(AgentRingState, state),
            index=index,
            packets=packets,
            octets=size,
            drops=drops,
            kicks=kicks,
            calls=calls,
        )

    def __bytes__(self) -> bytes:
        return self.layout.pack(
            self.session,
            self.state,
            self.index,
            self.packets,
            self.octets,
            self.drops,
            self.kicks,
            self.calls,
        )

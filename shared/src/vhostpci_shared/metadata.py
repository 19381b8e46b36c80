# SPDX-License-Identifier: Apache-2.0
"""The metadata region, version 1: the one thing daemon and agent agree on.

It fills the last 64 KiB of window 0.  `docs/metadata.md` is its normative text;
this module is the only place that lays it out in Python, and
`guest/ring/ring_api.h` holds the one entry that C reads (a test compares them)::

    0x0000  Header          magic, version, generation, heartbeat   daemon writes
    0x0040  Device          what holds for the whole device             "
    0x1000  Region[256]     the master's memory                         "
    0x3000  Ring[64]        the master's virtqueues                     "
    0x8000  Agent           who serves the device, and how far          agent writes
    0x9000  AgentRing[64]   where each ring stands                      "

All values are little-endian and naturally aligned.  What is not named is zero,
and not read.  Each side takes what the other wrote for hostile input: parsers
here raise `ProtocolError` or return, whatever the bytes.
"""

from dataclasses import dataclass
from enum import IntEnum, IntFlag
from struct import Struct
from typing import ClassVar, Self, TypeVar

from .wire import ProtocolError, unpack

MAGIC = b"VHOSTPCI"
VERSION = 1
SIZE = 0x10000

HEADER = 0x0000
DEVICE = 0x0040
REGIONS = 0x1000
RINGS = 0x3000
DAEMON_END = 0x4000
AGENT = 0x8000
AGENT_RINGS = 0x9000

MAX_REGIONS = 256
MAX_RINGS = 64
MAX_RING_SIZE = 32768
"""Largest queue size (VIRTIO, "Split Virtqueues")."""

SLAVE_ID = 0
"""IVPosition of the device that carries window 0."""
FIRST_WINDOW, LAST_WINDOW = 256, 65535
"""IDs of further windows, and so IVPositions of their devices."""
DAEMON_PEER = 1
"""Peer whose doorbell tells the daemon that the agent's part has changed."""
FIRST_CALL_PEER = 2
"""First peer ID for a set of the master's call eventfds."""
METADATA_VECTOR = 0
"""The slave's vector that says: the metadata changed."""
FIRST_KICK_VECTOR = 1
"""The slave's vector for ring 0's kick; ring i's is this plus i."""

GENERATION_OFFSET = HEADER + 0x10
HEARTBEAT_OFFSET = HEADER + 0x18


class RingFlag(IntFlag):
    """State of a ring, as the daemon knows it from the front-end."""

    STARTED = 1  # set up and kicked: addresses are valid
    ENABLED = 2  # SET_VRING_ENABLE 1
    CALL = 4  # call_peer and call_vector are valid; without it the driver polls
    PACKED = 8  # VIRTIO_F_RING_PACKED layout

    @classmethod
    def known(cls, value: int) -> Self:
        """Return `value` as flags; a bit that version 1 does not know is dropped."""
        return cls(value & 15)


class DeviceFlag(IntFlag):
    """State of the device as a whole."""

    MASTER = 1  # a front-end is connected

    @classmethod
    def known(cls, value: int) -> Self:
        """Return `value` as flags; a bit that version 1 does not know is dropped."""
        return cls(value & 1)


class AgentState(IntEnum):
    """What the agent says of itself."""

    NONE = 0  # nobody, or left in good order
    READY = 1  # serves the device
    FAILED = 2  # cannot serve it; the message says why


class AgentRingState(IntEnum):
    """What the agent says of one ring."""

    IDLE = 0  # never ran in this session
    RUNNING = 1
    STOPPED = 2  # stopped in good order; index says where
    BROKEN = 3  # the master's guest broke the ring's rules
    FENCED = 4  # somebody else moved the used index, or the session is over


@dataclass(frozen=True, slots=True)
class Header:
    """The fixed start; only these words are read before the version is known.

    `generation` is the seqlock: odd while the daemon writes, and two more after
    each change.  `heartbeat` grows while the daemon lives; it is outside the lock.
    """

    magic: bytes
    version: int
    length: int
    generation: int
    heartbeat: int

    layout: ClassVar = Struct("<8sIIQQ")

    @classmethod
    def parse(cls, data: bytes) -> Self:
        """Check magic, version and length, in that order.

        Raises:
            ProtocolError: not a metadata region, or of a version we don't know.
        """
        header = cls(*unpack(cls.layout, data))
        if header.magic != MAGIC:
            raise ProtocolError(
                f"no vhostpci metadata: it starts with {header.magic!r}, "
                f"not {MAGIC!r}; is the device served by vhostpci-host?"
            )
        if header.version != VERSION:
            raise ProtocolError(
                f"metadata version {header.version}, we know version {VERSION}: "
                "install the same version of vhostpci-host and vhostpci-guest"
            )
        if header.length != SIZE:
            raise ProtocolError(f"metadata length {header.length:#x}, not {SIZE:#x}")
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
        raise ProtocolError(f"no such {kind.__name__}: {value}") from None


def _text(data: bytes) -> str:
    """Return the printable text before the first NUL."""
    text = data.split(b"\0", 1)[0].decode("utf-8", "replace")
    return "".join(c if c.isprintable() else "\N{REPLACEMENT CHARACTER}" for c in text)


def _bytes(text: str, size: int) -> bytes:
    """Encode, cut at `size` without splitting a character."""
    return text.encode()[:size].decode("utf-8", "ignore").encode()


@dataclass(frozen=True, slots=True, kw_only=True)
class Device:
    """What holds for the whole device.

    `instance` is new for each daemon; `features` are the virtio feature bits the
    driver acknowledged, 0 before that; `mtu` is in bytes, 0 if not told.
    """

    instance: int
    features: int
    flags: DeviceFlag
    queue_pairs: int
    vectors: int
    daemon_peer: int
    mtu: int
    region_count: int
    ring_count: int
    name: str

    layout: ClassVar = Struct("<QQIHHHHHH64s")

    @classmethod
    def parse(cls, data: bytes) -> Self:
        """Check the counts against the tables' sizes.

        Raises:
            ProtocolError: a count is past its table, or the vectors too few.
        """
        fields = unpack(cls.layout, data)
        instance, features, flags, pairs, vectors, peer, mtu, regions, rings = fields[
            :9
        ]
        if regions > MAX_REGIONS or rings > MAX_RINGS or rings != 2 * pairs:
            raise ProtocolError(
                f"metadata counts {regions} regions (at most {MAX_REGIONS}) and "
                f"{rings} rings of {pairs} queue pairs (at most {MAX_RINGS})"
            )
        if vectors < FIRST_KICK_VECTOR + rings:
            raise ProtocolError(f"metadata has {vectors} vectors for {rings} rings")
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
            name=_text(fields[9]),
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
            _bytes(self.name, 64),
        )


@dataclass(frozen=True, slots=True)
class Region:
    """A piece of the master's memory: where its guest, and where we, have it."""

    guest_addr: int
    size: int
    window: int
    offset: int

    layout: ClassVar = Struct("<QQI4xQ")

    @classmethod
    def parse(cls, data: bytes) -> Self:
        """Check that neither address range is empty or wraps.

        Raises:
            ProtocolError: it is empty, or wraps.
        """
        region = cls(*unpack(cls.layout, data))
        if not 0 < region.size <= 2**64 - max(region.guest_addr, region.offset):
            raise ProtocolError(f"region is empty or wraps: {region}")
        return region

    def __bytes__(self) -> bytes:
        return self.layout.pack(self.guest_addr, self.size, self.window, self.offset)


@dataclass(frozen=True, slots=True, kw_only=True)
class Ring:
    """A virtqueue of the master.

    `desc`, `driver` and `device` are guest physical addresses of the three areas
    (VIRTIO, "Split Virtqueues").  `base` is where to start, as SET_VRING_BASE
    counts.  `session` is new whenever the ring may be owned by somebody else.
    """

    session: int
    flags: RingFlag
    size: int
    desc: int
    driver: int
    device: int
    base: int
    kick_vector: int
    call_peer: int
    call_vector: int

    layout: ClassVar = Struct("<QIIQQQIHHH14x")

    @classmethod
    def parse(cls, data: bytes) -> Self:
        """Check the size of a ring that is started; its addresses are the ring's.

        Raises:
            ProtocolError: the ring is started, and its size is impossible.
        """
        session, flags, size, *rest = unpack(cls.layout, data)
        desc, driver, device, base, kick_vector, call_peer, call_vector = rest
        if flags & RingFlag.STARTED and not 0 < size <= MAX_RING_SIZE:
            raise ProtocolError(f"ring size {size}, not 1 to {MAX_RING_SIZE}")
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
        )

    @property
    def runs(self) -> bool:
        """Whether the agent is to serve it."""
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
        )


@dataclass(frozen=True, slots=True)
class Snapshot:
    """All that the daemon says, as of one even `generation`."""

    generation: int
    device: Device
    regions: tuple[Region, ...]
    rings: tuple[Ring, ...]

    @classmethod
    def parse(cls, generation: int, data: bytes) -> Self:
        """Parse the daemon's part, `DAEMON_END` bytes read under the seqlock.

        Raises:
            ProtocolError: any entry is impossible.
        """
        device = Device.parse(data[DEVICE : DEVICE + Device.layout.size])
        regions = _table(Region, data, REGIONS, device.region_count)
        rings = _table(Ring, data, RINGS, device.ring_count)
        return cls(generation, device, regions, rings)


_Entry = TypeVar("_Entry", Region, Ring)


def _table(
    kind: type[_Entry], data: bytes, start: int, count: int
) -> tuple[_Entry, ...]:
    size = kind.layout.size
    return tuple(
        kind.parse(data[at : at + size])
        for at in range(start, start + count * size, size)
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class Agent:
    """What the agent says of itself.

    `instance` is new for each agent process; `heartbeat` grows while it lives;
    `generation` is the daemon's that it acts by: no ring which that one does not
    run is touched any more.
    """

    instance: int = 0
    heartbeat: int = 0
    generation: int = 0
    state: AgentState = AgentState.NONE
    vectors: int = 0
    binding: str = ""
    message: str = ""

    layout: ClassVar = Struct("<QQQIH2x16s208s")

    @classmethod
    def parse(cls, data: bytes) -> Self:
        """Parse what the slave wrote.

        Raises:
            ProtocolError: the state is none we know.
        """
        fields = unpack(cls.layout, data)
        instance, heartbeat, generation, state, vectors, binding, message = fields
        return cls(
            instance=instance,
            heartbeat=heartbeat,
            generation=generation,
            state=_state(AgentState, state),
            vectors=vectors,
            binding=_text(binding),
            message=_text(message),
        )

    def __bytes__(self) -> bytes:
        return self.layout.pack(
            self.instance,
            self.heartbeat,
            self.generation,
            self.state,
            self.vectors,
            _bytes(self.binding, 16),
            _bytes(self.message, 208),
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class AgentRing:
    """Where the agent stands in one ring; the counts are since its start.

    `index` is the used index (16 bits) that it wrote last in `session`.
    """

    session: int = 0
    state: AgentRingState = AgentRingState.IDLE
    index: int = 0
    packets: int = 0
    octets: int = 0
    drops: int = 0
    kicks: int = 0
    calls: int = 0

    layout: ClassVar = Struct("<QIIQQQQQ8x")

    @classmethod
    def parse(cls, data: bytes) -> Self:
        """Parse what the slave wrote.

        Raises:
            ProtocolError: the state is none we know.
        """
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

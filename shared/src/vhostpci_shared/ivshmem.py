# SPDX-License-Identifier: Apache-2.0
"""The messages of an ivshmem server (QEMU's docs/specs/ivshmem-spec.rst).

Only the server sends.  A message is one little-endian 64-bit number with at most one
file descriptor beside it.  What a message means depends on those before it::

    0              the protocol's version
    ID             the client's own ID
    -1      + fd   the shared memory
    PEER    + fd   peer PEER's next vector (the client's own: its next interrupt)
    PEER           peer PEER is gone

The daemon is the server; QEMU's ivshmem-doorbell device, or an agent that runs as a
process, is the client.  `Client` understands the messages without touching a socket.
"""

from collections import Counter
from dataclasses import dataclass
from enum import Enum
from struct import Struct

from .wire import ProtocolError, unpack

VERSION = 0
# A version that no client knows, sent to a client that must not connect.  QEMU then
# ends the realize() of its device with a clean error.  If the server closed the socket
# instead, QEMU would read from it without end, with the whole VM standing still (QEMU
# 7.2 until at least 10.2).
REFUSED = -2
# The same, for a client that cannot connect now because the server has too few
# descriptors.
EXHAUSTED = -3
SHARED_MEMORY = -1
# An ID is the upper half of the 32-bit doorbell register.
MAX_ID = 65535
# How the abstract name of a client's socket starts if the client takes the master's own
# kicks and calls as the vectors of a peer, and sockets among them (docs/metadata.md,
# "Sockets").  A QEMU's socket has no name.
TAKES_KICKS = b"\0vhostpci-guest.kicks."
# Little-endian, as the specification says, and signed: -1 is the shared memory.
LAYOUT = Struct("<q")
SIZE = LAYOUT.size


def encode(message: int) -> bytes:
    """Return the bytes of one message."""
    return LAYOUT.pack(message)


def decode(data: bytes) -> int:
    """Return the number in the bytes of one message; `Client.feed` checks its value.

    Raises:
        ProtocolError: the bytes are not exactly one message.
    """
    message: int = unpack(LAYOUT, data)[0]
    return message


class Occupied(ProtocolError):
    """The server refused the client because another one is connected."""


class Exhausted(ProtocolError):
    """The server refused the client because it has too few descriptors now."""


@dataclass(frozen=True, slots=True)
class SharedMemory:
    """The descriptor is the shared memory."""


@dataclass(frozen=True, slots=True)
class OwnVector:
    """The descriptor is signalled when a peer interrupts the client on `vector`."""

    vector: int


@dataclass(frozen=True, slots=True)
class PeerVector:
    """The descriptor interrupts `peer` on `vector`."""

    peer: int
    vector: int


@dataclass(frozen=True, slots=True)
class PeerGone:
    """The peer is gone, and descriptors for its vectors interrupt nothing any more."""

    peer: int


Event = SharedMemory | OwnVector | PeerVector | PeerGone


class _Expect(Enum):
    """Which message comes next; each step leads to the one below it."""

    VERSION = "the protocol's version"
    ID = "our own ID"
    MEMORY = "the shared memory"
    PEERS = "peers"


class Client:
    """Interprets the server's messages, one after the other.

    The descriptor beside a message stays with the caller.  `feed` returns what it is
    for; if it raises an error, the caller closes the descriptor.
    """

    def __init__(self) -> None:
        self.own_id: int | None = None
        self._expect = _Expect.VERSION
        # How many vectors each peer has so far: a message does not number its own.
        self._vectors: Counter[int] = Counter()

    @property
    def connected(self) -> bool:
        """Whether the handshake is over: own ID and shared memory are known."""
        return self._expect is _Expect.PEERS

    def feed(self, message: int, fd_present: bool) -> Event | None:
        """Interpret one message; None if the caller has nothing to do for it.

        Raises:
            ProtocolError: the server broke the protocol, or refused the client.
        """
        if self._expect is _Expect.PEERS:
            return self._peer(message, fd_present)
        # In the handshake, the shared memory has a descriptor and nothing else has.
        if fd_present != (self._expect is _Expect.MEMORY):
            raise ProtocolError(
                f"ivshmem message {message} with{'' if fd_present else 'out'} a "
                f"descriptor where {self._expect.value} is due",
                code="P002",
            )
        if self._expect is _Expect.MEMORY:
            return self._memory(message)
        if self._expect is _Expect.VERSION:
            self._version(message)
        else:
            self._id(message)
        return None

    def _version(self, message: int) -> None:
        if message == REFUSED:
            raise Occupied(
                "the server refused us: another slave is connected", code="P003"
            )
        if message == EXHAUSTED:
            raise Exhausted(
                "the server refused us: it has no descriptors left", code="P004"
            )
        if message != VERSION:
            raise ProtocolError(
                f"ivshmem protocol version {message}, not {VERSION}", code="P005"
            )
        self._expect = _Expect.ID

    def _id(self, message: int) -> None:
        self.own_id = _check_id(message)
        self._expect = _Expect.MEMORY

    def _memory(self, message: int) -> SharedMemory:
        if message != SHARED_MEMORY:
            raise ProtocolError(
                f"ivshmem message {message} before the shared memory", code="P006"
            )
        self._expect = _Expect.PEERS
        return SharedMemory()

    def _peer(self, message: int, fd_present: bool) -> Event | None:
        peer = _check_id(message)
        if not fd_present:
            # Like QEMU, ignore the end of a peer that was never there: the server need
            # not remember which peers it has told this client of.
            return PeerGone(peer) if self._vectors.pop(peer, 0) else None
        # The k-th message with a descriptor for a peer is that peer's vector k.
        vector = self._vectors[peer]
        self._vectors[peer] += 1
        return OwnVector(vector) if peer == self.own_id else PeerVector(peer, vector)


def _check_id(message: int) -> int:
    """Return `message` if it is a peer's ID, or raise ProtocolError."""
    if not 0 <= message <= MAX_ID:
        raise ProtocolError(
            f"ivshmem message {message} where an ID is due", code="P007"
        )
    return message

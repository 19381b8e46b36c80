# SPDX-License-Identifier: Apache-2.0
"""The messages of an ivshmem server (QEMU's docs/specs/ivshmem-spec.rst).

Only the server sends.  A message is one little-endian 64-bit number with at most
one file descriptor beside it; what it means depends on what came before::

    0              the protocol's version
    ID             the client's own ID
    -1      + fd   the shared memory
    PEER    + fd   peer PEER's next vector (the client's own: its next interrupt)
    PEER           peer PEER is gone

`Client` is the client's half of it, without a socket.
"""

from collections import Counter
from dataclasses import dataclass
from enum import Enum
from struct import Struct

from .wire import ProtocolError, unpack

VERSION = 0
REFUSED = -2
"""Version that no client knows: what a client that we do not want is told.

QEMU then ends its realize() with a clean error.  Closing the socket instead would
leave it reading for ever ("QEMU 7.2 ... until": not mended in 10.2).
"""
SHARED_MEMORY = -1
MAX_ID = 65535
LAYOUT = Struct("<q")
SIZE = LAYOUT.size


def encode(message: int) -> bytes:
    """Return the bytes of one message."""
    return LAYOUT.pack(message)


def decode(data: bytes) -> int:
    """Return the number in one message's bytes.

    Raises:
        ProtocolError: another length, or neither an ID nor -1.
    """
    message: int = unpack(LAYOUT, data)[0]
    return message


@dataclass(frozen=True, slots=True)
class SharedMemory:
    """The descriptor is the shared memory."""


@dataclass(frozen=True, slots=True)
class OwnVector:
    """The descriptor is signalled when somebody interrupts us on `vector`."""

    vector: int


@dataclass(frozen=True, slots=True)
class PeerVector:
    """The descriptor interrupts `peer` on `vector`."""

    peer: int
    vector: int


@dataclass(frozen=True, slots=True)
class PeerGone:
    """All vectors of `peer` are void."""

    peer: int


Event = SharedMemory | OwnVector | PeerVector | PeerGone


class _Expect(Enum):
    """What comes next; each step leads to the one below it."""

    VERSION = "the protocol's version"
    ID = "our own ID"
    MEMORY = "the shared memory"
    PEERS = "peers"


class Client:
    """What the server's messages mean, one after the other.

    The descriptor itself stays with the caller: `feed` says what it is for, and
    an error means that the caller closes it.
    """

    def __init__(self) -> None:
        self.own_id: int | None = None
        self._expect = _Expect.VERSION
        self._vectors: Counter[int] = Counter()

    @property
    def connected(self) -> bool:
        """Whether the handshake is over: ID and memory are known."""
        return self._expect is _Expect.PEERS

    def feed(self, message: int, fd_present: bool) -> Event | None:
        """Take one message; say what its descriptor is for, if it means anything.

        Raises:
            ProtocolError: the server broke the protocol, or wants no client.
        """
        if self._expect is _Expect.PEERS:
            return self._peer(message, fd_present)
        if fd_present != (self._expect is _Expect.MEMORY):
            raise ProtocolError(
                f"ivshmem message {message} with{'' if fd_present else 'out'} a "
                f"descriptor where {self._expect.value} is due"
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
            raise ProtocolError("the server refused us: another slave is connected")
        if message != VERSION:
            raise ProtocolError(f"ivshmem protocol version {message}, not {VERSION}")
        self._expect = _Expect.ID

    def _id(self, message: int) -> None:
        self.own_id = _check_id(message)
        self._expect = _Expect.MEMORY

    def _memory(self, message: int) -> SharedMemory:
        if message != SHARED_MEMORY:
            raise ProtocolError(f"ivshmem message {message} before the shared memory")
        self._expect = _Expect.PEERS
        return SharedMemory()

    def _peer(self, message: int, fd_present: bool) -> Event | None:
        peer = _check_id(message)
        if not fd_present:
            # As QEMU: a peer that we never heard of may go, too.
            return PeerGone(peer) if self._vectors.pop(peer, 0) else None
        vector = self._vectors[peer]
        self._vectors[peer] += 1
        return OwnVector(vector) if peer == self.own_id else PeerVector(peer, vector)


def _check_id(message: int) -> int:
    """Return `message` if it is a peer's ID, or raise ProtocolError."""
    if not 0 <= message <= MAX_ID:
        raise ProtocolError(f"ivshmem message {message} where an ID is due")
    return message

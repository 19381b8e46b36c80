# SPDX-License-Identifier: Apache-2.0
"""What a daemon leaves of a slave: its vectors, its peers, and what it has to read."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from vhostpci_shared import ivshmem
from vhostpci_shared import metadata as md

from ..fds import Fd, Notifier
from ..keeper.shelf import Left
from ..keeper.slots import StateError
from ..keeper.store import Keep
from .doorbells import CallSet, VectorSet
from .peers import Outgoing, Peers
from .relays import Relays

LOWEST = ivshmem.EXHAUSTED
"""The lowest message of all."""
GONE = ""
"""The name of a notifier that the front-end has replaced since."""


@dataclass(frozen=True, slots=True)
class OutgoingState:
    """A message that waits for the slave to read."""

    number: int
    """The message less `LOWEST`, which makes it a number from 0 on."""
    fd: str | None


@dataclass(frozen=True, slots=True)
class ConnectionState:
    """A slave's connection."""

    socket: str
    spoke: bool
    sent_any: bool
    first: int
    """What the mark SENT was when the first of `queue` was to be sent."""
    queue: tuple[OutgoingState, ...]


@dataclass(frozen=True, slots=True)
class PeersState:
    """The IDs that a connection has used."""

    used: int
    call_peer: int | None
    old: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class CallSetState:
    """The notifiers of the present call peer."""

    notifiers: tuple[str, ...]
    sources: tuple[str | None, ...]
    """The notifiers of the front-end that it was made of; GONE for a replaced one."""


@dataclass(frozen=True, slots=True)
class SlaveState:
    """The slave of a device."""

    connection: ConnectionState
    vectors: tuple[str, ...]
    direct: tuple[int, ...]
    """The rings whose vector is the kick that they had at first."""
    peers: PeersState
    calls: CallSetState | None
    outdated: int | None
    """The generation that may still name an old peer."""


@dataclass(frozen=True, slots=True)
class WindowState:
    """A window's socket, with the slave that has it."""

    number: int
    vector: str
    slave: str | None


def capture_queue(queue: Iterable[Outgoing], keep: Keep) -> tuple[OutgoingState, ...]:
    """Return messages as a successor reads them."""
    return tuple(
        OutgoingState(one.message - LOWEST, None if one.fd is None else keep(one.fd))
        for one in queue
    )


def restore_queue(
    states: Sequence[OutgoingState], left: Left, window: Fd
) -> list[Outgoing]:
    """Return messages with their descriptors.

    Args:
        states: of the messages.
        left: has the descriptors, but for the window's file.
        window: that file: the one that is kept has the lock of the arena.

    Raises:
        StateError: a descriptor is missing.
    """
    found: list[Outgoing] = []
    for one in states:
        message = one.number + LOWEST
        if message > ivshmem.MAX_ID:
            raise StateError(f"ivshmem message {message}")
        fd = None
        if one.fd is not None:
            is_window = message == ivshmem.SHARED_MEMORY
            fd = window.copy() if is_window else left.fd(one.fd)
        found.append(Outgoing(message, fd))
    return found


def capture_peers(peers: Peers) -> PeersState:
    """Return the used IDs as a successor reads them."""
    return PeersState(peers.used, peers.call_peer, tuple(peers.old))


def restore_peers(state: PeersState) -> Peers:
    """Return the peers, which use no ID again.

    Raises:
        StateError: the numbers contradict each other.
    """
    first, end = md.FIRST_CALL_PEER, md.FIRST_CALL_PEER + state.used
    named = [*state.old, *([] if state.call_peer is None else [state.call_peer])]
    if end > ivshmem.MAX_ID + 1 or any(not first <= one < end for one in named):
        raise StateError(f"peers {named} of {state.used}")
    peers = Peers()
    peers.used, peers.call_peer = state.used, state.call_peer
    peers.old = list(state.old)
    return peers


def capture_calls(calls: CallSet, keep: Keep) -> CallSetState:
    """Return the present call peer as a successor reads it."""

    def name(source: Notifier | None) -> str | None:
        if source is None:
            return None
        return GONE if source.closed else keep(source)

    return CallSetState(
        tuple(keep(one) for one in calls.notifiers),
        tuple(name(source) for source in calls.sources),
    )


def restore_calls(
    state: CallSetState,
    present: Sequence[tuple[str | None, Notifier | None]],
    left: Left,
    relays: Relays,
    *,
    takes_kicks: bool,
) -> CallSet:
    """Return the call peer of a daemon before us.

    Args:
        state: of it.
        present: the name and the notifier of each ring's call, then of each kick.
        left: has its notifiers.
        relays: makes the relays of calls that the slave does not take.
        takes_kicks: whether it has the kicks, too.

    Raises:
        StateError: a notifier is missing, or there are too many.
    """
    count = len(present) if takes_kicks else len(present) // 2
    if len(state.sources) != count or len(state.notifiers) != count:
        raise StateError(f"a call peer with {len(state.notifiers)} notifiers")
    sources = [
        _source(name, *one)
        for name, one in zip(state.sources, present[:count], strict=True)
    ]
    notifiers: list[Notifier] = []
    try:
        for name in state.notifiers:
            found = left.notifier(name)
            assert found is not None, "a name"
            notifiers.append(found)
    except StateError:
        for one in notifiers:
            one.close()
        raise
    calls = len(present) // 2
    return CallSet.left(relays, notifiers, sources, calls, takes_kicks=takes_kicks)


def _source(
    name: str | None, present_name: str | None, present: Notifier | None
) -> Notifier | None:
    """Return the notifier that a name stood for: the present one, or a replaced one."""
    if name is None:
        return None
    if name == present_name and present is not None:
        return present
    return Notifier(-1)  # which no present notifier is


def restore_vectors(state: SlaveState, count: int, left: Left) -> VectorSet:
    """Return the slave's vectors.

    Raises:
        StateError: one is missing, or is no eventfd.
    """
    if len(state.vectors) != count or any(one >= count - 1 for one in state.direct):
        raise StateError(f"{len(state.vectors)} vectors instead of {count}")
    found: list[Notifier] = []
    try:
        for name in state.vectors:
            found.append(left.eventfd(name))
    except StateError:
        for one in found:
            one.close()
        raise
    return VectorSet.left(found, state.direct)

# SPDX-License-Identifier: Apache-2.0
"""What a daemon leaves of a front-end: what it has set up, and its connection."""

from collections.abc import Callable
from dataclasses import dataclass

from vhostpci_shared import vhost_user as vu
from vhostpci_shared import virtio
from vhostpci_shared.vhost_user import MemRegion, ProtocolFeature, VringAddr
from vhostpci_shared.virtio import Feature
from vhostpci_shared.wire import ProtocolError

from ..fds import Notifier
from ..keeper.shelf import Left
from ..keeper.slots import StateError
from ..keeper.store import Keep
from ..memory.regions import MemoryMap, PlacedRegion
from .front_end_setup import FrontEndSetup
from .negotiation import PROTOCOL_FEATURES, offered
from .vring import Vring


@dataclass(frozen=True, slots=True)
class RegionState:
    """A region of the front-end's memory, and where it lies."""

    guest_addr: int
    size: int
    user_addr: int
    mmap_offset: int
    window: int
    offset: int


@dataclass(frozen=True, slots=True)
class AddrState:
    """A ring's addresses, as in SET_VRING_ADDR."""

    index: int
    flags: int
    desc: int
    used: int
    avail: int
    log: int


@dataclass(frozen=True, slots=True)
class VringState:
    """One ring; its areas follow from its addresses and the memory."""

    size: int
    packed: bool
    base: int
    base_set: bool
    base_told: bool
    base_known: bool
    lost: bool
    kicked: bool
    was_ready: bool
    enable: bool | None
    addr: AddrState | None
    kick: str | None
    call: str | None
    err: str | None


@dataclass(frozen=True, slots=True)
class SetupState:
    """What a front-end has set up."""

    features: int
    protocol_features: int
    mtu: int
    memory_problem: str
    regions: tuple[RegionState, ...]
    rings: tuple[VringState, ...]
    disabled: tuple[int, ...]
    backend_channel: str | None


@dataclass(frozen=True, slots=True)
class MasterState:
    """A front-end's connection, and the last message that was served on it."""

    socket: str
    pid: int
    introduced: bool
    spoke: bool
    returning: bool
    number: int
    """Of that message: the marks of the state's file count in it."""
    message: str
    """Which message it was (`peek.fingerprint`)."""
    reply: str
    """The reply to it, in hexadecimal; empty without one."""
    setup: SetupState


def capture_setup(setup: FrontEndSetup, keep: Keep) -> SetupState:
    """Return what the front-end has set up, as a successor reads it."""
    channel = setup.backend_channel
    return SetupState(
        features=int(setup.features),
        protocol_features=int(setup.protocol_features),
        mtu=setup.mtu,
        memory_problem=setup.memory_problem,
        regions=tuple(_region(placed) for placed in setup.memory.regions),
        rings=tuple(_capture_ring(ring, keep) for ring in setup.rings),
        disabled=tuple(sorted(setup.disabled)),
        backend_channel=None if channel is None else keep(channel),
    )


def _region(placed: PlacedRegion) -> RegionState:
    return RegionState(
        guest_addr=placed.region.guest_addr,
        size=placed.region.size,
        user_addr=placed.region.user_addr,
        mmap_offset=placed.region.mmap_offset,
        window=placed.window,
        offset=placed.offset,
    )


def _capture_ring(ring: Vring, keep: Keep) -> VringState:
    def name(notifier: Notifier | None) -> str | None:
        return None if notifier is None else keep(notifier)

    return VringState(
        size=ring.size,
        packed=ring.packed,
        base=ring.base,
        base_set=ring.base_set,
        base_told=ring.base_told,
        base_known=ring.base_known,
        lost=ring.lost,
        kicked=ring.kicked,
        was_ready=ring.was_ready,
        enable=ring.enable,
        addr=None if ring.addr is None else _capture_addr(ring.addr),
        kick=name(ring.kick),
        call=name(ring.call),
        err=name(ring.err),
    )


def _capture_addr(addr: VringAddr) -> AddrState:
    return AddrState(
        index=addr.index,
        flags=addr.flags,
        desc=addr.desc,
        used=addr.used,
        avail=addr.avail,
        log=addr.log,
    )


def restore_setup(
    setup: FrontEndSetup,
    state: SetupState,
    left: Left,
    check: Callable[[PlacedRegion], None],
) -> None:
    """Set up what the front-end of a daemon before us has set up.

    Args:
        setup: of our own, which is empty.
        state: what it has left.
        left: has the descriptors.
        check: checks that a region lies in one of our windows.

    Raises:
        StateError: it does not fit this device, or what is there.
    """
    features = Feature(state.features)
    protocol_features = ProtocolFeature(state.protocol_features)
    count = len(setup.rings)
    ours = offered(setup.queue_pairs, confined=setup.confined)
    if features & ~ours or protocol_features & ~PROTOCOL_FEATURES:
        raise StateError("the front-end has features that we do not offer")
    if len(state.rings) != count or any(one >= count for one in state.disabled):
        raise StateError(f"{len(state.rings)} rings instead of {count}")
    setup.features, setup.protocol_features = features, protocol_features
    setup.mtu, setup.memory_problem = state.mtu, state.memory_problem
    setup.memory = _restore_regions(state.regions, check)
    setup.disabled.update(state.disabled)
    if state.backend_channel is not None:
        setup.keep_backend_channel(left.fd(state.backend_channel))
    for ring, one in zip(setup.rings, state.rings, strict=True):
        _restore_ring(ring, one, left)
        _translate(ring, setup.memory)


def _restore_regions(
    states: tuple[RegionState, ...], check: Callable[[PlacedRegion], None]
) -> MemoryMap:
    memory = MemoryMap()
    try:
        for one in states:
            found = MemRegion(one.guest_addr, one.size, one.user_addr, one.mmap_offset)
            # Parsed again, since that checks it.
            region = MemRegion.parse(bytes(found))
            placed = PlacedRegion(region, one.window, one.offset)
            check(placed)
            memory = memory.add(placed)
    except ProtocolError as error:
        raise StateError(str(error)) from error
    return memory


def _restore_ring(ring: Vring, state: VringState, left: Left) -> None:
    try:
        # A split ring's size is checked again with its addresses.
        ring.size = virtio.check_packed_size(state.size) if state.size else 0
    except ProtocolError as error:
        raise StateError(str(error)) from error
    if state.base >= 2**16:
        raise StateError(f"base {state.base}")
    ring.packed, ring.base = state.packed, state.base
    ring.base_set, ring.base_told = state.base_set, state.base_told
    ring.base_known, ring.lost = state.base_known, state.lost
    ring.kicked, ring.was_ready = state.kicked, state.was_ready
    ring.enable = state.enable
    if (addr := state.addr) is not None:
        ring.addr = VringAddr(
            addr.index, addr.flags, addr.desc, addr.used, addr.avail, addr.log
        )
    ring.kick = left.notifier(state.kick)
    ring.call = left.notifier(state.call)
    ring.err = left.notifier(state.err)


def _translate(ring: Vring, memory: MemoryMap) -> None:
    was_ready = ring.was_ready
    try:
        ring.translate(memory)
    except ProtocolError:
        # As after a change of the memory: the ring is not ready until its region is
        # back.
        ring.was_ready = was_ready


def reply_of(state: MasterState) -> bytes:
    """Return the reply to the last message; empty without one.

    Raises:
        StateError: it is no hexadecimal text, or too long for one.
    """
    try:
        found = bytes.fromhex(state.reply)
    except ValueError as error:
        raise StateError(f"reply {state.reply!r}") from error
    if len(found) > vu.MAX_PAYLOAD:
        raise StateError(f"a reply of {len(found)} bytes")
    return found

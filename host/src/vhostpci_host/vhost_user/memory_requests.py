# SPDX-License-Identifier: Apache-2.0
"""The requests about the master's memory: as one table, or region by region."""

from dataclasses import replace

from vhostpci_shared import metadata as md
from vhostpci_shared import vhost_user as vu
from vhostpci_shared.errors import said
from vhostpci_shared.vhost_user import ProtocolFeature
from vhostpci_shared.wire import ProtocolError

from ..fds import Fd
from ..memory.regions import MemoryMap
from .front_end_setup import FrontEndSetup, Steps, Wait
from .message import Message


def get_max_mem_slots(setup: FrontEndSetup, _: vu.Empty, __: Message) -> vu.Payload:
    return vu.U64(md.MAX_REGIONS)


def set_mem_table(
    setup: FrontEndSetup, payload: vu.MemTable, message: Message
) -> Steps:
    if len(message.fds) != len(payload.regions):
        raise ProtocolError(
            f"{len(message.fds)} descriptors for {len(payload.regions)} regions",
            code="P048",
        )
    # Place every region before a ring is stopped: a refused table changes nothing.
    memory = MemoryMap()
    for region, fd in zip(payload.regions, message.fds, strict=True):
        memory = _with(setup, memory, region, fd)
    yield from _change_memory(setup, memory)
    return None


def add_mem_reg(
    setup: FrontEndSetup, payload: vu.SingleRegion, message: Message
) -> Steps:
    memory = _with(setup, setup.memory, payload.region, message.fds[0])
    # QEMU 7.2 adds, and removes, each region once for each queue pair: only the
    # first time may stop rings.
    if memory != setup.memory:
        yield from _change_memory(setup, memory)
    return None


def rem_mem_reg(setup: FrontEndSetup, payload: vu.SingleRegion, _: Message) -> Steps:
    memory = setup.memory.remove(_named(setup, payload.region))
    if memory != setup.memory:
        yield from _change_memory(setup, memory)
    return None


def _named(setup: FrontEndSetup, region: vu.MemRegion) -> vu.MemRegion:
    """Return the region with the address by which this front-end names its rings."""
    # With GPA_ADDRESSES that is the guest's, and the front-end's has no meaning: it may
    # be 0 for all regions.
    if ProtocolFeature.GPA_ADDRESSES in setup.protocol_features:
        return replace(region, user_addr=region.guest_addr)
    return region


def _with(
    setup: FrontEndSetup, memory: MemoryMap, region: vu.MemRegion, fd: Fd
) -> MemoryMap:
    """Return the map with a region more, and keep the reason if it is refused."""
    try:
        found = memory.add(setup.windows.place(_named(setup, region), fd))
        if setup.confined and len(found.regions) > 1:
            _refuse_second(found)
    except ProtocolError as error:
        # QEMU goes on without us when its memory is refused, and its guest has loaded
        # the driver: without this, the status would say that the driver is missing.
        setup.memory_problem = said(error)
        raise
    setup.memory_problem = ""
    return found


def _refuse_second(memory: MemoryMap) -> None:
    """Refuse another region of a confined master, which may have come later."""
    first, second = memory.regions
    raise ProtocolError(
        f"the memory at {second} is shared, and so is {first}: a confined master "
        "shares one region only; give it private memory (memory-backend-ram), also "
        "what is plugged later",
        code="P083",
    )


def _change_memory(setup: FrontEndSetup, memory: MemoryMap) -> Wait:
    """Quiesce all rings, change the memory, and translate the addresses again."""
    yield from setup.quiesce_all()
    setup.memory = memory
    for ring in setup.rings:
        try:
            ring.translate(memory)
        except ProtocolError:
            # QEMU removes and adds regions one by one when the layout changes.  The
            # ring is not ready until its region is back.
            continue

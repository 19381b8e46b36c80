# SPDX-License-Identifier: Apache-2.0
"""What a front-end says to give a back-end the memory, and to start a ring.

All functions here are pure.  An address of ours is the guest's: a region has its guest
address as user address too, so that SET_VRING_ADDR needs no translation, and a back-end
learns nothing of our address space.
"""

from collections.abc import Sequence
from dataclasses import dataclass

from vhostpci_shared import vhost_user as vu
from vhostpci_shared import virtio
from vhostpci_shared.vhost_user import Payload, Request

from ..interface import MemRegion, RingConf, RingRefused, locate


@dataclass(frozen=True, slots=True)
class Message:
    """A request, before it is bytes."""

    request: Request
    payload: Payload
    fds: tuple[int, ...] = ()
    checked: bool = False
    """Whether the back-end shall say if it could do it (REPLY_ACK)."""


def memory_table(regions: Sequence[MemRegion]) -> list[Message]:
    """Return what gives a back-end the master's memory, which has a file each.

    With more regions than a table holds, the back-end has CONFIGURE_MEM_SLOTS.
    """
    found = [_region(region) for region in regions]
    if len(found) <= vu.MAX_TABLE_REGIONS:
        table = vu.MemTable(tuple(region for region, _ in found))
        fds = tuple(fd for _, fd in found)
        return [Message(Request.SET_MEM_TABLE, table, fds, checked=True)]
    return [
        Message(Request.ADD_MEM_REG, vu.SingleRegion(region), (fd,), checked=True)
        for region, fd in found
    ]


def _region(region: MemRegion) -> tuple[vu.MemRegion, int]:
    assert region.file is not None, "the back-end cannot map this region"
    wire = vu.MemRegion(
        guest_addr=region.guest_addr,
        size=region.size,
        user_addr=region.guest_addr,
        mmap_offset=region.offset,
    )
    return wire, region.file.fd


def ring_start(
    index: int, conf: RingConf, *, kick: int, call: int | None, enable: bool
) -> list[Message]:
    """Return what starts a ring, in the order of QEMU's vhost_virtqueue_start.

    Args:
        index: of the ring.
        conf: where it is.
        kick: an eventfd.
        call: an eventfd, or None for no interrupts.
        enable: whether rings are off until they are turned on.
    """
    area = vu.VringAddr(
        index, 0, desc=conf.desc, used=conf.device, avail=conf.driver, log=0
    )
    no_call = call is None
    messages = [
        Message(Request.SET_VRING_NUM, vu.VringState(index, conf.size)),
        Message(Request.SET_VRING_BASE, vu.VringState(index, conf.base)),
        Message(Request.SET_VRING_ADDR, area, checked=True),
        # The call first: a back-end may look at the ring when it has the kick.
        Message(
            Request.SET_VRING_CALL,
            vu.VringFd(index, nofd=no_call),
            () if call is None else (call,),
        ),
        Message(Request.SET_VRING_KICK, vu.VringFd(index), (kick,)),
    ]
    if enable:
        on = vu.VringState(index, 1)
        messages.append(Message(Request.SET_VRING_ENABLE, on, checked=True))
    return messages


def check_areas(conf: RingConf, regions: Sequence[MemRegion]) -> None:
    """Check that each area of a split ring lies in one region.

    Else a back-end would be said to refuse what the master's driver did wrong.

    Raises:
        RingRefused: one does not, or the size is none.
    """
    if not 0 < conf.size <= virtio.MAX_SPLIT_SIZE or conf.size & (conf.size - 1):
        raise RingRefused(
            f"its size {conf.size} is no power of two up to 32768", code="R038"
        )
    areas = (
        ("descriptor table", conf.desc, virtio.DESC_SIZE * conf.size),
        *_rings(conf),
    )
    for name, start, size in areas:
        if locate(start, size, regions) is None:
            raise RingRefused(
                f"its {name} at {start:#x} is not in the memory table", code="R039"
            )


def _rings(conf: RingConf) -> tuple[tuple[str, int, int], ...]:
    extra = virtio.RING_EXTRA
    return (
        ("avail ring", conf.driver, extra + virtio.AVAIL_ENTRY * conf.size),
        ("used ring", conf.device, extra + virtio.USED_ENTRY * conf.size),
    )

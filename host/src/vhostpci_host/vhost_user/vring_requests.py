# SPDX-License-Identifier: Apache-2.0
"""The requests about one vring.

QEMU, DPDK and User Mode Linux describe their rings in different orders.  So no handler
checks which requests came before its own.  Whether a ring is ready follows from all its
requests together (`Vring.ready`)::

            SET_VRING_NUM, _ADDR, _KICK, SET_MEM_TABLE (any order)
    STOPPED ─────────────────────────────────────────────────────► READY
       ▲     GET_VRING_BASE, RESET_DEVICE                            │
       └─────────────────────────────────────────────────────────────┘

A ready ring runs if it is enabled as well.  A request that changes a ready ring first
quiesces it, so the change is made when the agent no longer touches the ring.

SET_VRING_ENABLE is different.  A ring that is disabled still belongs to the back-end,
so its front-end has the answer at once, and the device stops the ring in its own time.
The next other request waits for that: User Mode Linux sends GET_FEATURES, and then
frees the memory of the rings that it has disabled.
"""

import os

from vhostpci_shared import vhost_user as vu
from vhostpci_shared import virtio
from vhostpci_shared.wire import ProtocolError

from ..fds import Notifier
from .front_end_setup import FrontEndSetup, Steps
from .message import Message


def set_vring_num(setup: FrontEndSetup, payload: vu.VringState, _: Message) -> Steps:
    ring = setup.ring(payload.index)
    check = virtio.check_packed_size if ring.packed else virtio.check_split_size
    num = check(payload.num)
    if num != ring.size:
        yield from setup.quiesce([payload.index])
        ring.size = num
        ring.translate(setup.memory)
    return None


def set_vring_addr(setup: FrontEndSetup, payload: vu.VringAddr, _: Message) -> Steps:
    ring = setup.ring(payload.index)
    if payload != ring.addr:
        yield from setup.quiesce([payload.index])
        ring.addr = payload
        ring.translate(setup.memory)
    return None


def set_vring_base(setup: FrontEndSetup, payload: vu.VringState, _: Message) -> Steps:
    ring = setup.ring(payload.index)
    # The field has 32 bits, an index of a split ring 16.
    if payload.num >= 2**16 and not ring.packed:
        raise ProtocolError(
            f"base {payload.num} of a ring that counts to 65535", code="P054"
        )
    # The upper half of a packed ring's base says where its used descriptors go.
    # Packets complete in order: that is where the next chain is, as in the lower half.
    # (DPDK leaves it 0.)
    base = payload.num & 0xFFFF
    # First the quiesce, which sets the base to the used index.
    yield from setup.quiesce([payload.index])
    ring.base, ring.lost = base, False
    ring.base_known, ring.base_told = ring.base_told, False
    ring.base_set = True
    return None


def get_vring_base(setup: FrontEndSetup, payload: vu.VringState, _: Message) -> Steps:
    ring = setup.ring(payload.index)
    # First the quiesce, which reads the used index: `stop` forgets where that is.
    yield from setup.quiesce([payload.index])
    ring.stop()
    ring.base_told = True
    used = ring.base << 16 if ring.packed else 0
    return vu.VringState(payload.index, used | ring.base)


def set_vring_kick(setup: FrontEndSetup, payload: vu.VringFd, message: Message) -> None:
    ring = setup.ring(payload.index)
    # A new kick for a ready ring stops nothing: the agent has no kick, and the
    # device relays from the new one.  Without a descriptor, the ring is polled.
    ring.set_notifier("kick", _notifier(payload, message, os.O_WRONLY))
    if not ring.kicked:
        ring.kicked = True
        ring.translate(setup.memory)


def set_vring_call(setup: FrontEndSetup, payload: vu.VringFd, message: Message) -> None:
    ring = setup.ring(payload.index)
    # A call is no condition for a ring to be ready: QEMU sends it after the kick
    # (the one that it sends at connect is not the guest's interrupt), and a guest
    # that polls has none.
    ring.set_notifier("call", _notifier(payload, message, os.O_RDONLY))


def set_vring_err(setup: FrontEndSetup, payload: vu.VringFd, message: Message) -> None:
    ring = setup.ring(payload.index)
    ring.set_notifier("err", _notifier(payload, message, os.O_RDONLY))


def set_vring_enable(setup: FrontEndSetup, payload: vu.VringState, _: Message) -> None:
    setup.ring(payload.index)
    if payload.num > 1:
        raise ProtocolError(f"enable {payload.num}, neither 0 nor 1", code="P055")
    # Without a quiesce: a front-end disables several rings one after the other, and
    # from QEMU 10 on it waits for each answer, while its VM stands still.
    setup.enable(payload.index, on=bool(payload.num))


def _notifier(payload: vu.VringFd, message: Message, useless: int) -> Notifier | None:
    """Take the notifier of a message; None if its flag says that there is none.

    Args:
        payload: the message's.
        message: with the notifier, or without.
        useless: O_RDONLY or O_WRONLY, the end of a pipe that does not serve: a kick is
            read, and the others are written.

    Raises:
        ProtocolError: flag and descriptor differ, or it is no notifier, or that end.
    """
    # `not nofd` counts as 1 or 0: the number of descriptors that belongs to the flag.
    if len(message.fds) != (not payload.nofd):
        raise ProtocolError(
            f"{len(message.fds)} descriptors and the flag for none "
            f"{'set' if payload.nofd else 'not set'}",
            code="P056",
        )
    fd = message.take()
    if fd is None:
        return None
    # `adopt` leaves nothing to close, unless it refuses the descriptor.
    try:
        notifier = Notifier.adopt(fd)
    finally:
        fd.close()
    if notifier.access == useless:
        notifier.close()
        use = "read from" if useless == os.O_WRONLY else "write to"
        raise ProtocolError(f"the end of a pipe that nothing can {use}", code="P057")
    return notifier

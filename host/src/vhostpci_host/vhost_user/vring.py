# SPDX-License-Identifier: Apache-2.0
"""One vring, as the front-end has described it so far.

The requests that describe a ring may come in any order.  A ring is `ready` once it has
a size, addresses that lie in the memory, and a kick.  `Vring.stop` takes the kick away.
"""

from dataclasses import dataclass
from typing import Self

from vhostpci_shared import virtio
from vhostpci_shared.errors import Said
from vhostpci_shared.vhost_user import VringAddr
from vhostpci_shared.wire import ProtocolError

from ..config.commands import master_arguments
from ..config.device import DeviceConfig
from ..fds import Notifier
from ..memory.regions import MemoryMap, OutsideMemory

NOT_ALL_SHARED = (
    "if a part of the master's memory is not shared, share all of it (share=on for "
    "each -object of its memory)"
)
"""What to do about a ring outside of an ordinary master's memory."""


def what_to_do_outside(config: DeviceConfig) -> str:
    """Return what to do about a ring outside of the memory of a device's master."""
    if config.confined is None:
        return NOT_ALL_SHARED
    return (
        "the card of a confined master has iommu_platform=on, and its kernel has "
        "CONFIG_DMA_CMA and its rings in the shared region by the word cma=: see "
        f"`{master_arguments(config.name, config.mode)}`"
    )


class Unservable(ProtocolError):
    """A driver's rings cannot be served, and its front-end need not go for that.

    It would come again and do the same again, each second.  When its guest is started
    again, perhaps with other words for its kernel, the rings may be good.
    """


@dataclass(frozen=True, slots=True)
class Areas:
    """Guest physical addresses of a ring's three areas; each is in one region."""

    desc: int
    driver: int
    device: int

    @classmethod
    def packed(cls, memory: MemoryMap, addr: VringAddr, size: int) -> Self:
        """Translate the addresses of a packed ring (VIRTIO, "Packed Virtqueues").

        Raises:
            ProtocolError: an area is not aligned, or not wholly in one region.
        """
        event = virtio.PACKED_EVENT
        return cls(
            _area(memory, "descriptor ring", addr.desc, virtio.DESC_SIZE * size, 16),
            _area(memory, "driver event suppression", addr.avail, event, 4),
            _area(memory, "device event suppression", addr.used, event, 4),
        )

    @classmethod
    def split(cls, memory: MemoryMap, addr: VringAddr, size: int) -> Self:
        """Translate the addresses of a split ring (VIRTIO, "Split Virtqueues").

        Raises:
            ProtocolError: an area is not aligned, or not wholly in one region; or no
                split ring has that size.
        """
        # The features, and with them the format, may have changed since the size came.
        virtio.check_split_size(size)
        # The alignments 16, 2 and 4 are VIRTIO's, for guest physical addresses.
        extra = virtio.RING_EXTRA
        return cls(
            _area(memory, "descriptor table", addr.desc, virtio.DESC_SIZE * size, 16),
            _area(
                memory, "avail ring", addr.avail, extra + virtio.AVAIL_ENTRY * size, 2
            ),
            _area(memory, "used ring", addr.used, extra + virtio.USED_ENTRY * size, 4),
        )


def _area(memory: MemoryMap, name: str, user_addr: int, size: int, align: int) -> int:
    try:
        guest_addr = memory.guest_addr(user_addr, size)
    except OutsideMemory as error:
        raise OutsideMemory(f"{name}: {error}", code=error.code) from None
    if guest_addr % align:
        raise ProtocolError(
            f"{name} at {guest_addr:#x} is not aligned to {align}", code="P053"
        )
    return guest_addr


@dataclass(slots=True)
class Vring:
    """What the front-end has said about one ring, and the ring's notifiers."""

    outside: str = NOT_ALL_SHARED
    """What to do if it lies outside of the memory."""
    size: int = 0
    packed: bool = False
    """Whether its format is that of F_RING_PACKED."""
    base: int = 0
    """Where the ring starts, or where it stood when it was stopped: the used index, or
    a packed ring's position."""
    base_set: bool = False
    """Whether the front-end has set the base, and the ring has not run since: then the
    used index, or what an agent left, is about another life of the ring."""
    base_told: bool = False
    """Whether the front-end has asked where the ring stands, and not set it since."""
    base_known: bool = False
    """Whether `base` is where a packed ring stands; else it may be out of date."""
    lost: bool = False
    """Whether it is a packed ring, and nothing says where it stands."""
    addr: VringAddr | None = None
    areas: Areas | None = None
    kicked: bool = False
    """Whether SET_VRING_KICK came, with a descriptor or without one."""
    was_ready: bool = False
    """Whether the ring was ready at any time since the front-end connected."""
    enable: bool | None = None
    """What SET_VRING_ENABLE said last; None if it never came."""
    problem: str = ""
    """Why a ring with size, addresses and kick cannot run; empty if it can."""
    kick: Notifier | None = None
    call: Notifier | None = None
    err: Notifier | None = None

    @property
    def ready(self) -> bool:
        """Whether the ring can run; it runs once it is enabled, too."""
        return self.kicked and self.areas is not None and not self.lost

    @property
    def described(self) -> bool:
        """Whether the front-end has said all that a ring needs, but for the memory."""
        return bool(self.kicked and self.size and self.addr)

    def translate(self, memory: MemoryMap) -> None:
        """Translate the addresses, if size, addresses and kick are all known.

        Raises:
            Unservable: an area is not aligned, or not wholly in one region.
        """
        # Not before the kick: a front-end replaces size and addresses one by one, and
        # the new size with the old addresses need not fit in any region.
        self.areas, self.problem = None, ""
        if not (self.described and memory.regions):
            return
        assert self.addr is not None, "a ring that is described without addresses"
        translate = Areas.packed if self.packed else Areas.split
        try:
            self.areas = translate(memory, self.addr, self.size)
        except ProtocolError as error:
            advice = f": {self.outside}" if isinstance(error, OutsideMemory) else ""
            self.problem = Said(f"{error}{advice}", error.code)
            raise Unservable(self.problem, code=error.code) from error
        self.was_ready = True

    def set_notifier(self, name: str, notifier: Notifier | None) -> None:
        """Replace the notifier `kick`, `call` or `err`, and close the previous one."""
        before: Notifier | None = getattr(self, name)
        if before is not None:
            before.close()
        setattr(self, name, notifier)

    def stop(self) -> None:
        """Make the ring not ready, and close its kick and call."""
        # QEMU makes new eventfds each time that the driver starts.  The base stays: the
        # reply to GET_VRING_BASE needs it.
        self.kicked, self.areas, self.problem, self.lost = False, None, "", False
        self.set_notifier("kick", None)
        self.set_notifier("call", None)

    def reset(self) -> None:
        """Forget everything: the device was reset, or the front-end is gone."""
        self.stop()
        self.set_notifier("err", None)
        self.size, self.base, self.addr, self.enable = 0, 0, None, None
        self.packed = self.base_known = False
        self.base_set = self.base_told = False

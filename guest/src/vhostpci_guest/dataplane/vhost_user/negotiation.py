# SPDX-License-Identifier: Apache-2.0
"""What the agent and a back-end agree on when they meet, and what follows from it.

`negotiate` is a conversation without a socket: it yields messages, and takes the number
in the reply to each question.
"""

from collections.abc import Generator, Sequence
from dataclasses import dataclass
from typing import Any

from vhostpci_shared import vhost_user as vu
from vhostpci_shared import virtio
from vhostpci_shared.vhost_user import ProtocolFeature, Request
from vhostpci_shared.virtio import Feature

from ..interface import MemRegion
from .messages import Message

WANTED = (
    ProtocolFeature.MQ
    | ProtocolFeature.REPLY_ACK
    | ProtocolFeature.NET_MTU
    | ProtocolFeature.CONFIGURE_MEM_SLOTS
)
_NOT_FOR_US = Feature.F_PROTOCOL_FEATURES | Feature.F_LOG_ALL | Feature.F_RING_PACKED
"""What a back-end may offer and the agent does not: where a packed ring stands must be
written into the metadata at each step, which only our ring driver does."""

Conversation = Generator[Message, int, "BackEnd"]


@dataclass(frozen=True, slots=True)
class BackEnd:
    """What one back-end can do."""

    features: int
    """Virtio feature bits."""
    protocol: ProtocolFeature
    """Those that are in use, so the wanted ones at most."""
    queue_pairs: int = 1
    memory_slots: int = vu.MAX_TABLE_REGIONS
    has_protocol: bool = False
    """Whether it has protocol features at all: then rings are off at first."""

    @property
    def offers(self) -> int:
        """The features that a master's driver may have with this back-end."""
        # What the front-end does for a driver needs nothing of the back-end.
        ours = Feature.NET_F_MTU
        if ProtocolFeature.MQ in self.protocol:
            ours |= Feature.NET_F_MQ
        return (self.features | ours) & ~_NOT_FOR_US

    def acknowledge(self, features: int) -> int:
        """Return what SET_FEATURES says for a driver that has these features."""
        own = Feature.F_PROTOCOL_FEATURES if self.has_protocol else Feature(0)
        return (features | own) & self.features

    def problem(self, pairs: int, regions: Sequence[MemRegion]) -> str:
        """Return why it can serve no ring; empty if it can.

        Args:
            pairs: queue pairs of the device.
            regions: the master's memory.
        """
        if self.queue_pairs < pairs:
            return (
                f"it has {self.queue_pairs} queue pair(s), and the device has {pairs}: "
                "start it with as many"
            )
        if len(regions) > self.memory_slots:
            return (
                f"it takes {self.memory_slots} regions of memory, and the master has "
                f"{len(regions)}: back the master's memory by fewer files"
            )
        return ""

    def status(self) -> dict[str, Any]:
        """Return what `vhostpci-guest status -j` says of it."""
        return {
            "features": virtio.names(Feature(self.features)),
            "protocol_features": virtio.names(self.protocol),
            "queue_pairs": self.queue_pairs,
            "memory_slots": self.memory_slots,
        }


def negotiate() -> Conversation:
    """Yield QEMU's first messages, in its order; return what the back-end can do."""
    features = yield _ask(Request.GET_FEATURES)
    protocol = ProtocolFeature(0)
    has_protocol = bool(features & Feature.F_PROTOCOL_FEATURES)
    if has_protocol:
        theirs = yield _ask(Request.GET_PROTOCOL_FEATURES)
        protocol = WANTED & ProtocolFeature(theirs)
        yield Message(Request.SET_PROTOCOL_FEATURES, vu.U64(protocol))
    pairs, slots = 1, vu.MAX_TABLE_REGIONS
    if ProtocolFeature.MQ in protocol:
        pairs = yield _ask(Request.GET_QUEUE_NUM)
    if ProtocolFeature.CONFIGURE_MEM_SLOTS in protocol:
        # A table holds eight, whatever it says.
        slots = max(slots, (yield _ask(Request.GET_MAX_MEM_SLOTS)))
    yield Message(Request.SET_OWNER, vu.Empty())
    return BackEnd(features, protocol, pairs, slots, has_protocol)


def _ask(request: Request) -> Message:
    return Message(request, vu.Empty())

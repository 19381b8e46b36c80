# SPDX-License-Identifier: Apache-2.0
"""What the back-end offers, and the requests that negotiate it with the front-end."""

from vhostpci_shared import vhost_user as vu
from vhostpci_shared import virtio
from vhostpci_shared.vhost_user import ProtocolFeature
from vhostpci_shared.virtio import Feature
from vhostpci_shared.wire import ProtocolError

from ..features import CONFINED_ONLY, OFFERED, PAIRS_ONLY
from .front_end_setup import FrontEndSetup, Steps
from .message import Message
from .vring import Unservable

# Not LOG_SHMFD: the agent does not log which pages it writes, and without this feature
# QEMU refuses to migrate the master.  Not INFLIGHT_SHMFD: QEMU never uses it for a
# network card, so packets must complete in order.  Not CONFIG: QEMU ignores it for a
# network card, with a warning.
PROTOCOL_FEATURES = (
    ProtocolFeature.MQ
    | ProtocolFeature.REPLY_ACK
    | ProtocolFeature.NET_MTU
    | ProtocolFeature.RARP
    | ProtocolFeature.BACKEND_REQ
    # Without it, QEMU gives up on a master with more than eight regions.
    | ProtocolFeature.CONFIGURE_MEM_SLOTS
    # Ring addresses are the guest's: memory_requests.py has the only difference.
    | ProtocolFeature.GPA_ADDRESSES
)


def offered(queue_pairs: int, *, confined: bool = False) -> Feature:
    """Return all that a device may offer: with several queue pairs also multiqueue."""
    found = OFFERED if queue_pairs > 1 else OFFERED & ~PAIRS_ONLY
    return found | CONFINED_ONLY if confined else found


def get_features(setup: FrontEndSetup, _: vu.Empty, __: Message) -> vu.Payload:
    # A QEMU does not start with a confined master's card whose back-end lacks
    # CONFINED_ONLY, whatever the slave's data plane is.
    limit = setup.offer() | CONFINED_ONLY
    return vu.U64(offered(setup.queue_pairs, confined=setup.confined) & limit)


def set_features(setup: FrontEndSetup, payload: vu.U64, _: Message) -> Steps:
    # Not what this connection was offered: a QEMU that has connected again gives its
    # driver what it was offered when it made the card.
    extra = payload.value & ~offered(setup.queue_pairs, confined=setup.confined)
    if extra:
        raise ProtocolError(f"not offered: {virtio.names(Feature(extra))}", code="P049")
    # QEMU repeats SET_FEATURES for each queue pair, when the rings of the earlier
    # pairs run already: the same features must not stop them.
    if payload.value != setup.features:
        yield from setup.quiesce_all()
    setup.features = Feature(payload.value)
    setup.set_format(packed=Feature.F_RING_PACKED in setup.features)
    # QEMU acknowledges F_ACCESS_PLATFORM to us only if the VM has an IOMMU.
    if setup.driver_problem:
        raise Unservable(setup.driver_problem, code="P078")
    return None


def get_protocol_features(setup: FrontEndSetup, _: vu.Empty, __: Message) -> vu.Payload:
    return vu.U64(PROTOCOL_FEATURES)


def set_protocol_features(setup: FrontEndSetup, payload: vu.U64, _: Message) -> None:
    extra = payload.value & ~PROTOCOL_FEATURES
    if extra:
        raise ProtocolError(
            f"not offered: {virtio.names(ProtocolFeature(extra))}", code="P050"
        )
    setup.protocol_features = ProtocolFeature(payload.value)


def get_queue_num(setup: FrontEndSetup, _: vu.Empty, __: Message) -> vu.Payload:
    return vu.U64(setup.queue_pairs)

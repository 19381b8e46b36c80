# SPDX-License-Identifier: Apache-2.0
"""The requests about the device as a whole: its owner, a reset, its MTU and its MAC."""

from vhostpci_shared import vhost_user as vu
from vhostpci_shared.virtio import Feature
from vhostpci_shared.wire import ProtocolError

from .front_end_setup import FrontEndSetup, Steps
from .message import Message

# The least and the largest MTU that VIRTIO allows.
MIN_MTU = 68
MAX_MTU = 65535


def set_owner(setup: FrontEndSetup, _: vu.Empty, __: Message) -> None:
    """Do nothing: the front-end of a connection is its only owner."""


def reset_owner(setup: FrontEndSetup, _: vu.Empty, __: Message) -> None:
    """Do nothing, as the specification recommends."""


def reset_device(setup: FrontEndSetup, _: vu.Empty, __: Message) -> Steps:
    # QEMU does not send this: the protocol feature RESET_DEVICE is not offered.
    yield from setup.quiesce_all()
    for ring in setup.rings:
        ring.reset()
        # The specification has all rings disabled after a reset.  None would mean
        # enabled, since no feature is acknowledged any more.
        ring.enable = False
    setup.features, setup.mtu = Feature(0), 0
    return None


def set_backend_req_fd(setup: FrontEndSetup, _: vu.Empty, message: Message) -> None:
    """Keep the channel open, although the daemon sends no requests on it."""
    # User Mode Linux needs this request to succeed.
    setup.keep_backend_channel(message.take())


def net_set_mtu(setup: FrontEndSetup, payload: vu.U64, _: Message) -> None:
    if not MIN_MTU <= payload.value <= MAX_MTU:
        raise ProtocolError(
            f"MTU {payload.value}, not {MIN_MTU} to {MAX_MTU}", code="P046"
        )
    setup.mtu = payload.value


def send_rarp(setup: FrontEndSetup, _: vu.U64, __: Message) -> None:
    """Do nothing: the slave's bridge learns the MAC from the master's packets."""

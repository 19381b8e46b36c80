# SPDX-License-Identifier: Apache-2.0
"""What makes the data plane vhost-net, if this machine has it."""

import os
from contextlib import suppress

from ..dataplane.interface import DataPlane
from ..dataplane.vhost_net import Counters, VhostNetPlane
from ..errors import Unusable
from ..pci.kernel import System
from ..tap.requests import Requests
from ..tap.tap_port import PlaneMaker, TapPort

_MODULE = "vhost_net"


def make_planes(
    requests: Requests, system: System | None, *, confine: bool
) -> PlaneMaker:
    """Return what makes the data plane vhost-net on a TAP.

    Args:
        requests: opens /dev/vhost-net, and reads the TAPs' counters.
        system: loads the module; None where there is no right to do so.
        confine: whether our threads have only the system calls that they need.

    Raises:
        Unusable: this machine has no vhost-net for us.
    """
    _check(requests, system)

    def make(port: TapPort, device: str) -> DataPlane:
        def counters() -> Counters | None:
            # The TAP may be gone, which `check` reports.
            with suppress(Unusable, OSError):
                return requests.counters(port.fds[0])
            return None

        return VhostNetPlane(
            port.fds,
            device,
            open_node=requests.open_vhost_net,
            counters=counters,
            takes_uso=bool(port.takes_uso),
            confine=confine,
        )

    return make


def _check(requests: Requests, system: System | None) -> None:
    """Find out whether /dev/vhost-net can be opened; load its module if not."""
    try:
        os.close(requests.open_vhost_net())
    except Unusable:
        if system is None:
            raise
        said = system.modprobe(_MODULE)
        if said is not None:
            raise Unusable(
                f"--data-plane vhost-net: the module {_MODULE} can't be loaded for "
                f"{system.release}: {said}; another kernel package may have it; or use "
                "--data-plane ring",
                code="G034",
            ) from None
        os.close(requests.open_vhost_net())

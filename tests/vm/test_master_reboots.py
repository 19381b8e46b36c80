# SPDX-License-Identifier: Apache-2.0
"""The master's guest reboots; its QEMU, the agent and the daemon stay.

  master            vhostpci-host            slave
virtio-net ------ vhost-user, ivshmem ------ vhostpci-guest -- TAP
 rebooted
"""

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.vm import pair
from tests.vm.pair import Pair

pytestmark = pytest.mark.vm


@pytest.fixture(scope="module")
def booted(logs: Path) -> Iterator[Pair]:
    """VMs of our own: without KVM a reboot after ten minutes takes two."""
    with pair.booted(logs / "reboots", module=True) as link:
        yield link


vfio = pytest.mark.parametrize("served", ["vfio"], indirect=True)


@vfio
def test_ping_comes_back_after_a_reboot(link: Pair) -> None:
    link.master.reboot()
    link.master.configure()
    link.wait_link()
    ping = link.ping_both_ways()
    assert ping.received == ping.sent


@vfio
def test_ping_comes_back_after_a_reset_without_a_warning(link: Pair) -> None:
    # The guest's driver has no chance to stop its rings: QEMU does it.
    link.master.qmp("system_reset")
    link.master.wait_ready()
    link.master.configure()
    link.wait_link()
    ping = link.ping_both_ways()
    assert ping.received == ping.sent

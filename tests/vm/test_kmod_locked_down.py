# SPDX-License-Identifier: Apache-2.0
"""A slave whose kernel takes signed modules only, as with Secure Boot.

 test (ivshmem server)            slave, lockdown=integrity
window 0 --- QMP --- root port --- vhostpci-guest
"""

import json
from collections.abc import Iterator

import pytest

from tests.vm import image, qemu, wheels
from tests.vm.bare_slave import Slave, started

pytestmark = pytest.mark.vm

MIB = 2**20
PLACE = "0000:01:00.0"


@pytest.fixture(scope="module")
def slave(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Slave]:
    """A VM with a device and a vIOMMU; its image has our module without a signature."""
    guest = image.build(wheels.guest_wheels(), module=True)
    # The last -append is what counts.
    append = f"{qemu.APPEND} intel_iommu=on lockdown=integrity"
    args = [*qemu.ports(1), "-append", append]
    logs = tmp_path_factory.mktemp("locked-down")
    with started(logs, args, guest=guest) as slave:
        slave.vm.run("mount -t securityfs securityfs /sys/kernel/security")
        slave.plug(0, MIB, "port0", vectors=3)
        slave.vm.wait_for(f"test -e /sys/bus/pci/devices/{PLACE}/resource2")
        yield slave


def test_agent_says_why_the_module_is_refused_and_what_to_do(slave: Slave) -> None:
    tried = slave.vm.run(
        f"vhostpci-guest run --device {PLACE} --bind kmod", check=False, timeout=60
    )
    assert tried.rc == 1
    assert "Secure Boot or lockdown refuses the module uio_vhostpci" in tried.stderr
    assert "mokutil --import" in tried.stderr
    assert "or use vfio" in tried.stderr


def test_agent_then_uses_vfio(slave: Slave) -> None:
    listed = slave.vm.run("vhostpci-guest devices -j", timeout=60).stdout
    (device,) = json.loads(listed)
    whys = {name: way["why_not"] for name, way in device["bindings"].items()}
    assert whys["vfio"] is None
    assert "lockdown" in whys["sysfs"]
    assert "lockdown" in whys["uio"]

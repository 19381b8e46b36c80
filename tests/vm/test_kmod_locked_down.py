# SPDX-License-Identifier: Apache-2.0
"""A slave whose kernel takes signed modules only, as with Secure Boot.

 test (ivshmem server)            slave, lockdown=integrity
window 0 --- QMP --- root port --- vhostpci-guest
"""

import json
import signal
from collections.abc import Iterator

import pytest

from tests.vm import image, qemu, wheels, window_file
from tests.vm.bare_slave import Slave, started

pytestmark = pytest.mark.vm

MIB = 2**20
PLACE = "0000:01:00.0"


@pytest.fixture(scope="module")
def slave(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Slave]:
    """A VM with a device and a vIOMMU; its image has our module without a signature."""
    guest = image.build(wheels.guest_wheels(), module=True)
    # The last -append is what counts.
    append = f"{qemu.APPEND} intel_iommu=on"
    args = [*qemu.ports(1), "-append", append]
    logs = tmp_path_factory.mktemp("locked-down")
    with started(logs, args, guest=guest) as slave:
        slave.vm.run("mount -t securityfs securityfs /sys/kernel/security")
        slave.plug(0, MIB, "port0", vectors=3)
        slave.vm.wait_for(f"test -e /sys/bus/pci/devices/{PLACE}/resource2")
        yield slave


@pytest.fixture(scope="module")
def without_module(slave: Slave) -> Slave:
    """The VM once the kernel is locked down, and the module removed."""
    lock_down(slave)
    slave.vm.run("modprobe -r uio_vhostpci")
    return slave


def lock_down(slave: Slave) -> None:
    """Lock the kernel down, which cannot be undone."""
    slave.vm.run("echo integrity > /sys/kernel/security/lockdown || true")
    slave.vm.run("grep '\\[integrity\\]' /sys/kernel/security/lockdown")


def test_module_that_the_kernel_has_taken_gives_a_window_file(slave: Slave) -> None:
    """Here it is loaded before the lockdown, in place of being signed."""
    slave.vm.run("modprobe uio_vhostpci")
    lock_down(slave)
    job = window_file.start(slave.vm, window_file.BACK_END, "reads", "once")
    assert job.poll() is None
    job.send(signal.SIGKILL)
    job.wait(10)


def test_agent_says_why_the_module_is_refused_and_what_to_do(
    without_module: Slave,
) -> None:
    tried = without_module.vm.run(
        f"vhostpci-guest run --device {PLACE} --bind kmod", check=False, timeout=60
    )
    assert tried.rc == 1
    assert "Secure Boot or lockdown refuses the module uio_vhostpci" in tried.stderr
    assert "mokutil --import" in tried.stderr
    assert "or use vfio" in tried.stderr


def test_agent_then_uses_vfio(without_module: Slave) -> None:
    listed = without_module.vm.run("vhostpci-guest devices -j", timeout=60).stdout
    (device,) = json.loads(listed)
    whys = {name: way["why_not"] for name, way in device["bindings"].items()}
    assert whys["vfio"] is None
    assert "lockdown" in whys["sysfs"]
    assert "lockdown" in whys["uio"]

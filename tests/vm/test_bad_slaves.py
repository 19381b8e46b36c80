# SPDX-License-Identifier: Apache-2.0
"""A slave VM that lacks something: the agent says what, and how to mend it.

 vhostpci-host            slave, made wrongly
ivshmem ---------------- vhostpci-guest
"""

import json
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.vm import image, wheels
from tests.vm.daemon import Daemon
from tests.vm.harness import Vm
from tests.waiting import wait_for

pytestmark = pytest.mark.vm


def slave(daemon: Daemon, args: list[str]) -> Vm:
    """A slave VM without a vIOMMU."""
    guest = image.build(wheels.guest_wheels())
    return Vm("slave", guest, logs=daemon.log.parent, args=args)


@pytest.fixture(scope="module")
def without_viommu(logs: Path) -> Iterator[Vm]:
    """One slave VM with the right device, for the tests that leave it as it was."""
    with (
        Daemon("card", memory="512M", logs=logs / "without-viommu") as daemon,
        slave(daemon, daemon.qemu_args("slave")) as vm,
    ):
        vm.wait_ready()
        yield vm


def fails(vm: Vm, *options: str) -> str:
    """Run the agent for the device, which must fail; return the line that it says."""
    (device,) = json.loads(vm.run("vhostpci-guest devices -j", timeout=60).stdout)
    command = ["vhostpci-guest", "run", "--device", device["address"], *options]
    result = vm.run(command, check=False, timeout=60)
    assert result.rc == 1, result.stderr
    return result.stderr.splitlines()[-1]


def test_too_few_vectors(daemon: Daemon) -> None:
    args = [
        word.replace("vectors=3", "vectors=1") for word in daemon.qemu_args("slave")
    ]
    with slave(daemon, args) as vm:
        vm.wait_ready()
        said = fails(vm)
        assert "vectors=3" in said
        assert "1 MSI-X" in said
        assert "vectors=3" in daemon.status()["agent"]["message"]


def test_slave_without_a_viommu(without_viommu: Vm) -> None:
    vm = without_viommu
    assert "intel-iommu" in fails(vm, "--bind", "vfio")
    listed = vm.run("vhostpci-guest devices", timeout=60).stdout
    assert "vfio" in listed
    assert "intel-iommu" in listed
    assert "uio" in listed


def test_device_that_is_not_ours(daemon: Daemon) -> None:
    """ivshmem-plain has the same IDs, and no doorbells."""
    backend = "memory-backend-ram,id=plain,size=1M,share=on"
    args = ["-object", backend, "-device", "ivshmem-plain,memdev=plain"]
    with slave(daemon, args) as vm:
        vm.wait_ready()
        assert "no vhostpci metadata" in fails(vm, "--bind", "sysfs")


def test_no_device_at_all_is_waited_for(daemon: Daemon) -> None:
    with slave(daemon, []) as vm:
        vm.wait_ready()
        job = vm.spawn("exec vhostpci-guest run")
        wait_for(lambda: "waiting for one to be plugged" in job.output(), job.output)
        assert job.stop() == 0, job.output()


def test_driver_that_was_bound_before_is_put_back(without_viommu: Vm) -> None:
    vm = without_viommu
    driver = "basename $(readlink /sys/bus/pci/devices/$(cat /tmp/address)/driver)"
    uio = "/sys/bus/pci/drivers/uio_pci_generic"
    vm.run(
        f"modprobe uio_pci_generic && echo 1af4 1110 > {uio}/new_id && "
        f"basename $(ls -d {uio}/0*) > /tmp/address"
    )
    job = vm.spawn("exec vhostpci-guest run --bind sysfs")
    vm.run(
        "for i in $(seq 300); do ip -o link | grep -q card && exit; "
        "sleep 0.1; done; exit 1",
        timeout=40,
    )
    assert job.stop() == 0, job.output()
    assert vm.run(driver).stdout == "uio_pci_generic\n"
    vm.run(f"echo 1af4 1110 > {uio}/remove_id && rmmod uio_pci_generic")

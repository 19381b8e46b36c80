# SPDX-License-Identifier: Apache-2.0
"""A slave VM that lacks something: the agent says what, and what to do about it.

 vhostpci-host            slave, made wrongly
ivshmem ---------------- vhostpci-guest
"""

import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from tests.vm import image, qemu, wheels
from tests.vm.bare_slave import clear_handlers
from tests.vm.daemon import Daemon
from tests.vm.harness import Vm
from tests.vm.qmp import Qmp

pytestmark = pytest.mark.vm

ROOT_PORT = "port0"
BOUND = "ls -d /sys/bus/pci/devices/* /sys/bus/pci/drivers/*/0000:*"
"""Lists what no test may change: the PCI functions, and those that have drivers."""


def boot(logs: Path, args: list[str]) -> Vm:
    """Return a slave VM without a vIOMMU, not started."""
    return Vm("slave", image.build(wheels.guest_wheels()), logs=logs, args=args)


@pytest.fixture(scope="module")
def booted_with_device(logs: Path) -> Iterator[Vm]:
    """A slave VM with the right device."""
    here = logs / "without-viommu"
    with (
        Daemon("card", memory="512M", logs=here) as daemon,
        boot(here, daemon.qemu_args("slave")) as vm,
    ):
        vm.wait_ready()
        yield vm


@pytest.fixture(scope="module")
def booted_without_device(logs: Path) -> Iterator[Vm]:
    """A slave VM with a root port for tests that plug in a device."""
    with boot(logs / "without-device", qemu.ports(1, "2G")) as vm:
        vm.wait_ready()
        yield vm


@pytest.fixture
def with_device(booted_with_device: Vm) -> Iterator[Vm]:
    """A slave VM with the right device, with a check after each test."""
    with left_as_found(booted_with_device) as vm:
        yield vm


@pytest.fixture
def without_device(booted_without_device: Vm) -> Iterator[Vm]:
    """A slave VM without any device, with a check after each test."""
    with left_as_found(booted_without_device) as vm:
        yield vm


@contextmanager
def left_as_found(vm: Vm) -> Iterator[Vm]:
    """Fail a test that has left a device, a driver or an agent behind."""
    before = vm.run(BOUND).stdout
    yield vm
    assert vm.run(BOUND).stdout == before
    assert vm.agents() == []


@contextmanager
def plugged(vm: Vm, **device: Any) -> Iterator[None]:
    """Have a device in the root port."""
    with Qmp(vm.run_dir / "slave-qmp") as monitor:
        monitor.execute("device_add", {"id": "plugged", "bus": ROOT_PORT, **device})
        try:
            vm.wait_for("grep -q 0x1110 /sys/bus/pci/devices/*/device")
            yield
        finally:
            monitor.execute("device_del", {"id": "plugged"})
            assert monitor.deleted("plugged", 60)
            clear_handlers(monitor)


def fails(vm: Vm, *options: str) -> str:
    """Run the agent for the device, which must fail; return the line that it says."""
    (device,) = json.loads(vm.run("vhostpci-guest devices -j", timeout=60).stdout)
    command = ["vhostpci-guest", "run", "--device", device["address"], *options]
    result = vm.run(command, check=False, timeout=60)
    assert result.rc == 1, result.stderr
    return result.stderr.splitlines()[-1]


def test_too_few_vectors(without_device: Vm, daemon: Daemon) -> None:
    vm = without_device
    path = str(daemon.run_dir / "card.ivshmem")
    address = {"type": "unix", "data": {"path": path}}
    socket = {"type": "socket", "data": {"addr": address, "server": False}}
    vm.qmp("chardev-add", id="card", backend=socket)
    with plugged(vm, driver="ivshmem-doorbell", chardev="card", vectors=1):
        said = fails(vm)
        assert "vectors=3" in said
        assert "1 MSI-X" in said
        assert "vectors=3" in daemon.status()["agent"]["message"]
    vm.qmp("chardev-remove", id="card")


def test_slave_without_a_viommu(with_device: Vm) -> None:
    vm = with_device
    assert "intel-iommu" in fails(vm, "--bind", "vfio")
    listed = vm.run("vhostpci-guest devices", timeout=60).stdout
    assert "vfio" in listed
    assert "intel-iommu" in listed
    assert "uio" in listed


def test_device_that_is_not_ours(without_device: Vm) -> None:
    """ivshmem-plain has the same IDs, and no doorbells."""
    vm = without_device
    backend = {"qom-type": "memory-backend-ram", "id": "plain", "size": 2**20}
    vm.qmp("object-add", **backend, share=True)
    with plugged(vm, driver="ivshmem-plain", memdev="plain"):
        assert "no vhostpci metadata" in fails(vm, "--bind", "sysfs")
    vm.qmp("object-del", id="plain")


def test_no_device_at_all_is_waited_for(without_device: Vm) -> None:
    vm = without_device
    job = vm.spawn("exec vhostpci-guest run")
    job.wait_said("waiting for one to be plugged")
    assert job.stop() == 0, job.output()


def test_driver_that_was_bound_before_is_put_back(with_device: Vm) -> None:
    vm = with_device
    driver = "basename $(readlink /sys/bus/pci/devices/$(cat /tmp/address)/driver)"
    uio = "/sys/bus/pci/drivers/uio_pci_generic"
    vm.run(
        f"modprobe uio_pci_generic && echo 1af4 1110 > {uio}/new_id && "
        f"basename $(ls -d {uio}/0*) > /tmp/address"
    )
    job = vm.spawn("exec vhostpci-guest run --bind sysfs")
    vm.wait_for("ip -o link | grep -q card")
    assert job.stop() == 0, job.output()
    assert vm.run(driver).stdout == "uio_pci_generic\n"
    vm.run(f"echo 1af4 1110 > {uio}/remove_id && rmmod uio_pci_generic")

# SPDX-License-Identifier: Apache-2.0
"""How each way to a BAR maps it, and why /dev/mem is none of them.

test ── QMP ──► QEMU ── ivshmem-plain in a port ──► guest: Debian's kernel
                         (A; then B in its place)
"""

import json
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.vm import image, qemu, wheels
from tests.vm.harness import Job, Vm
from tests.vm.qmp import Qmp
from tests.waiting import wait_for

pytestmark = [pytest.mark.vm, pytest.mark.timeout(120)]

SIZE = 256 << 20
CACHED, UNCACHED = "write-back", "uncached-minus"

# Maps BAR 2 in each of the ways, one beside the other, and prints the memory type that
# the kernel notes then; at SIGTERM it prints what is there now, and writes beside it.
MAP = """
import json, mmap, os, re, signal, sys
from contextlib import ExitStack, closing
from vhostpci_guest import pci, sysfs, vfio

device = pci.at(sys.argv[1])
start, end = device._bar(2)

def mem(device):
    stack.enter_context(device.enabled())
    fd = os.open("/dev/mem", os.O_RDWR)  # without O_SYNC, which would be uncached
    return mmap.mmap(fd, mmap.PAGESIZE, offset=start)

def bound(bind):
    return stack.enter_context(closing(bind(device))).window.view

ways = {"sysfs": sysfs.bind, "vfio": vfio.bind}
with ExitStack() as stack:
    views = [
        mem(device) if way == "mem" else bound(ways[way]) for way in sys.argv[2:]
    ]
    for view in views:
        view[0]  # vfio maps when a page is touched
    notes = open("/sys/kernel/debug/x86/pat_memtype_list").read()
    types = re.findall(rf"\\[mem {start:#018x}-\\S+ (\\S+)", notes)
    signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM})
    print(json.dumps({"above_4g": start >> 32 > 0, "types": types}), flush=True)
    signal.sigwait({signal.SIGTERM})
    print(json.dumps(bytes(views[0][:8]).decode()), flush=True)
    views[0][8:16] = b"from old"
"""


class Slot:
    """A VM with one port, and what is plugged there."""

    def __init__(self, vm: Vm, monitor: Qmp) -> None:
        self.vm = vm
        self._monitor = monitor

    def plug(self, name: str, memory: Path) -> None:
        """Plug a device in that shows a file."""
        memory.write_bytes(b"memory " + name.encode())
        with memory.open("r+b") as file:
            file.truncate(SIZE)
        backend = {"qom-type": "memory-backend-file", "id": f"m{name}", "share": True}
        backend |= {"size": SIZE, "mem-path": str(memory)}
        self._monitor.execute("object-add", backend)
        device = {"driver": "ivshmem-plain", "id": name, "memdev": f"m{name}"}
        self._monitor.execute("device_add", device | {"bus": "port0"})
        wait_for(lambda: self.address, "the guest has it")

    @property
    def address(self) -> str:
        """Where the guest has the device; empty if nowhere, or not yet."""
        there = "grep -l 0x1110 /sys/bus/pci/devices/*/device"
        paths = self.vm.run(there, check=False).stdout.split()
        address = paths[0].split("/")[-2] if paths else ""
        ready = f"test -e /sys/bus/pci/devices/{address}/resource2"
        return address if self.vm.run(ready, check=False).rc == 0 else ""

    def unplug(self, name: str) -> None:
        """Take it out; the guest agrees."""
        self._monitor.execute("device_del", {"id": name})
        assert self._monitor.deleted(name, 10)
        self._monitor.execute("object-del", {"id": f"m{name}"})

    def map(self, *ways: str) -> tuple[Job, list[str]]:
        """Have a process in the guest that maps it; and the types of all mappings."""
        job = self.vm.spawn(["python3", "/tmp/map.py", self.address, *ways])
        wait_for(lambda: "above_4g" in job.output(), job.output, 20)
        told = json.loads(job.output())
        assert told["above_4g"]  # below, firmware lets nothing be cached
        return job, told["types"]


@pytest.fixture(scope="module")
def booted(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Slot]:
    logs = tmp_path_factory.mktemp("memory-types")
    guest = image.build(wheels.guest_wheels())
    args = qemu.ports(1)
    with Vm("slave", guest, logs=logs, args=args, iommu=True) as vm:
        vm.wait_ready()
        vm.run("mount -t debugfs debugfs /sys/kernel/debug")
        vm.put("/tmp/map.py", MAP.encode())
        with Qmp(vm.run_dir / "slave-qmp") as monitor:
            yield Slot(vm, monitor)


@pytest.fixture
def slot(booted: Slot, tmp_path: Path) -> Iterator[Slot]:
    """The VM, with a device A."""
    booted.plug("A", tmp_path / "A")
    yield booted
    if booted.address:
        booted.unplug("A")


@pytest.mark.parametrize("way", ["sysfs", "vfio"])
def test_sysfs_and_vfio_map_a_bar_uncached(slot: Slot, way: str) -> None:
    """So the agent measures its windows, and has a module for those that are slow."""
    job, types = slot.map(way)
    job.stop()
    assert set(types) == {UNCACHED}


def test_dev_mem_caches_a_bar_only_if_nobody_else_has_mapped_it(slot: Slot) -> None:
    """So whoever maps it so could not be sure of what it gets: there is no error."""
    job, types = slot.map("mem")
    job.stop()
    assert types == [CACHED]
    job, types = slot.map("sysfs", "mem")
    job.stop()
    assert set(types) == {UNCACHED}


def test_dev_mem_mapping_shows_what_comes_after_its_device(
    slot: Slot, tmp_path: Path
) -> None:
    """So the agent does not map /dev/mem: nothing revokes that at an unplug.

    It would serve the rings of the next device's master, before it knows.
    """
    job, _ = slot.map("mem")
    slot.unplug("A")
    slot.plug("B", tmp_path / "B")
    slot.vm.run(f"echo 1 > /sys/bus/pci/devices/{slot.address}/enable")
    job.stop()
    assert '"memory B"' in job.output()
    with (tmp_path / "B").open("rb") as memory:
        assert memory.read(16) == b"memory Bfrom old"
    slot.unplug("B")

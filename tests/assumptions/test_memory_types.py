# SPDX-License-Identifier: Apache-2.0
"""How each way to map a BAR caches it, and why the agent does not use /dev/mem.

test ── QMP ──► QEMU ── ivshmem-doorbell in a port ──► guest: Debian's kernel
                         (A; then B in its place)
"""

import json
import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.vm import qemu
from tests.vm.bare_slave import Slave, started
from tests.vm.harness import Job

pytestmark = pytest.mark.vm

SIZE = 256 << 20
A, B = 10, 11
PLACE = Path("/sys/bus/pci/devices/0000:01:00.0")
"""The device that is plugged into the root port, as the guest sees it."""
CACHED, UNCACHED = "write-back", "uncached-minus"

# Maps BAR 2 in each of the ways, one beside the other, and prints the memory type that
# the kernel notes then; at SIGTERM it prints what is there now, and writes beside it.
MAP = """
import json, mmap, os, re, signal, sys
from contextlib import ExitStack, closing
from vhostpci_guest.pci import search, sysfs, vfio

device = search.at(sys.argv[1])
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
    print(json.dumps(bytes(views[0][:9]).decode()), flush=True)
    views[0][9:17] = b"from old"
"""


@pytest.fixture(scope="module")
def booted(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Slave]:
    with started(tmp_path_factory.mktemp("memory-types"), qemu.ports(1)) as slave:
        slave.vm.run("mount -t debugfs debugfs /sys/kernel/debug")
        slave.vm.put("/tmp/map.py", MAP.encode())
        yield slave


@pytest.fixture
def slave(booted: Slave) -> Iterator[Slave]:
    """The VM, with device A plugged in; the test's end unplugs every device."""
    plug(booted, A)
    yield booted
    booted.close()


def plug(slave: Slave, device: int) -> int:
    """Plug a device in; return its memory, which begins with the device's number."""
    memory = slave.plug(device, SIZE, "port0")
    os.pwrite(memory, b"memory %d" % device, 0)
    slave.vm.wait_for(f"test -e {PLACE}/resource2")
    return memory


def mapped(slave: Slave, *ways: str) -> tuple[Job, list[str]]:
    """Map the device in a guest process; return it, and the types of its mappings."""
    job = slave.vm.spawn(["python3", "/tmp/map.py", PLACE.name, *ways])
    job.wait_said("above_4g")
    told = json.loads(job.output())
    assert told["above_4g"]  # below 4 GiB, firmware forbids caching
    return job, told["types"]


@pytest.mark.parametrize("way", ["sysfs", "vfio"])
def test_sysfs_and_vfio_map_a_bar_uncached(slave: Slave, way: str) -> None:
    """So the agent measures its windows, and has a module for those that are slow."""
    job, types = mapped(slave, way)
    job.stop()
    assert set(types) == {UNCACHED}


def test_dev_mem_caches_a_bar_only_if_it_is_not_mapped_from_sysfs(slave: Slave) -> None:
    """So a program that maps /dev/mem cannot rely on the cache: there is no error."""
    job, types = mapped(slave, "mem")
    job.stop()
    assert types == [CACHED]
    job, types = mapped(slave, "sysfs", "mem")
    job.stop()
    assert set(types) == {UNCACHED}


def test_dev_mem_mapping_shows_the_next_device_in_the_same_place(slave: Slave) -> None:
    """So the agent does not map /dev/mem: an unplug does not revoke the mapping.

    The agent would write into the rings of the next device's master unawares.
    """
    job, _ = mapped(slave, "mem")
    slave.ask_back(A)
    assert slave.goes(A)
    memory = plug(slave, B)
    slave.vm.run(f"echo 1 > {PLACE}/enable")
    job.stop()
    assert f'"memory {B}"' in job.output()
    assert os.pread(memory, 17, 0) == b"memory %dfrom old" % B

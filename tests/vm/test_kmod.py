# SPDX-License-Identifier: Apache-2.0
"""The slave's kernel module, and a program that uses its node, for each kernel.

 test (ivshmem server)            slave
window 0 --- QMP --- root port --- uio_vhostpci --- a program
"""

import os
import re
import signal
import struct
import time
from collections.abc import Iterator

import pytest

from tests.vm import debug_kernel, node, parts, power
from tests.vm.bare_slave import Slave
from tests.vm.harness import Job

pytestmark = pytest.mark.vm


def not_with_kasan(why: str) -> pytest.MarkDecorator:
    """Skip a test with the debug kernel."""
    return pytest.mark.skipif(
        debug_kernel.DEBUG in debug_kernel.under_test(), reason=why
    )


MIB = 2**20
SIGBUS = -signal.SIGBUS


@pytest.fixture
def slave(module_booted: Slave) -> Iterator[Slave]:
    """The booted VM with a bound device; after the test all devices are unplugged."""
    module_booted.plug(0, 1024 * MIB, "port0", vectors=3)
    yield module_booted
    module_booted.close()


def ring(slave: Slave, vector: int) -> None:
    """Signal a vector of the slave's device."""
    os.eventfd_write(slave.vectors[0][vector], 1)


def end(job: Job) -> int | None:
    """Wait for a program's end; return its exit status."""
    return job.wait(10)


def test_device_is_bound_by_its_alias(slave: Slave) -> None:
    """udev runs modprobe with the alias that the kernel reports for the device."""
    place = node.address(slave.vm)
    slave.vm.run("modprobe -r uio_vhostpci")
    slave.vm.run(f'modprobe "$(cat /sys/bus/pci/devices/{place}/modalias)"')
    assert node.address(slave.vm) == place


def test_each_vector_signals_its_eventfd(slave: Slave) -> None:
    job = node.use(slave.vm)
    for vector in (2, 0, 1):
        ring(slave, vector)
        job.wait_said(f"vector {vector}")
    said = re.findall(r"vector (\d)", job.output())
    assert said == ["2", "0", "1"]


def test_vector_that_fires_before_anyone_listens_is_not_lost(slave: Slave) -> None:
    node.address(slave.vm)
    ring(slave, 2)
    job = node.use(slave.vm, "late")
    ring(slave, 1)
    time.sleep(0.5)
    assert "vector" not in job.output()
    job.send(signal.SIGUSR1)
    job.wait_said("vector 1", "vector 2")


def test_vector_signals_the_eventfd_that_was_armed_last(slave: Slave) -> None:
    job = node.use(slave.vm)
    job.send(signal.SIGUSR1)
    slave.vm.wait_until(lambda: job.output().count("armed") == 2, job.output)
    time.sleep(0.2)
    before = job.output().count("vector 0")  # DEBUG_SHIRQ signals what is disarmed
    ring(slave, 0)
    slave.vm.wait_until(lambda: job.output().count("vector 0") > before, job.output)
    time.sleep(0.2)
    assert job.output().count("vector 0") == before + 1


def test_vector_is_free_once_its_program_ends(slave: Slave) -> None:
    job = node.use(slave.vm)
    assert slave.vm.run("grep -c uio_vhostpci /proc/interrupts").stdout == "3\n"
    job.send(signal.SIGKILL)
    end(job)
    slave.vm.wait_for("! grep uio_vhostpci /proc/interrupts")
    ring(slave, 1)
    node.use(slave.vm).wait_said("vector 1")


@pytest.mark.parametrize(
    ("request_", "error"),
    [
        ("3 << 20 | eventfd", "EINVAL"),
        ("2047 << 20 | eventfd", "EINVAL"),
        ("-1", "EINVAL"),
        ("0 << 20 | node", "EINVAL"),
        ("0 << 20 | 999", "EBADF"),
    ],
)
def test_request_for_a_missing_vector_or_eventfd_is_refused(
    slave: Slave, request_: str, error: str
) -> None:
    tried = slave.vm.run(
        ["python3", "-c", BAD_REQUEST, node.address(slave.vm), request_]
    )
    assert tried.stdout == f"{error}\n"


BAD_REQUEST = """
import errno, os, struct, sys
from pathlib import Path
name = next(Path(f"/sys/bus/pci/devices/{sys.argv[1]}/uio").iterdir()).name
node, eventfd = os.open(f"/dev/{name}", os.O_RDWR), os.eventfd(0)
try:
    os.write(node, struct.pack("=i", eval(sys.argv[2])))
except OSError as error:
    print(errno.errorcode[error.errno])
"""


def test_window_is_the_hypervisors_memory(slave: Slave) -> None:
    job = node.use(slave.vm)
    assert f"open, ID 0, {1024 * MIB} bytes" in job.output()


@not_with_kasan("QEMU lists all that is mapped; the shadow is terabytes of it")
def test_window_is_write_back_and_the_registers_are_not(slave: Slave) -> None:
    """Check the kernel's list of memory types, and the processor's page tables."""
    job = node.use(slave.vm, "read")
    (registers, window), (low, high) = bars(slave)
    listed = slave.vm.run("cat /sys/kernel/debug/x86/pat_memtype_list").stdout
    assert f"[mem {window:#018x}-{window + 1024 * MIB:#018x}] write-back" in listed
    slave.vm.wait_until(
        lambda: user_pages(slave, low, high), lambda: "a page is mapped"
    )
    pages = user_pages(slave, low, high)
    assert pages, job.output()
    assert all(not {"C", "T"} & set(flags) for flags in pages), "cached"
    assert {"P" in flags for flags in pages} == {node.has_huge_pages(slave.vm)}
    assert f"[mem {registers & ~0xFFF:#018x}" not in [
        line for line in listed.splitlines() if "write-back" in line
    ]


def test_agents_window_has_no_page_tables_where_huge_pages_can_be(slave: Slave) -> None:
    """Touch each huge page of 1 GiB; page tables for it all take 2 MiB."""
    slave.vm.put("/tmp/touch.py", TOUCH.encode())
    place = node.address(slave.vm)
    said = slave.vm.run(["python3", "/tmp/touch.py", place], timeout=60).stdout
    faults, tables = map(int, said.split())
    assert 512 <= faults < 600
    assert tables < 64 if node.has_huge_pages(slave.vm) else tables >= 2048, said


TOUCH = """
import resource, sys
from pathlib import Path
from vhostpci_guest.pci import bindings, search

def faults():
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt

def tables():
    status = Path("/proc/self/status").read_text()
    return int(status.split("VmPTE:")[1].split()[0])

view = bindings.bind(search.at(sys.argv[1]), "kmod").window.view
before = faults(), tables()
for at in range(0, len(view), 2 << 20):
    view[at]
print(faults() - before[0], tables() - before[1])
"""


def bars(slave: Slave) -> tuple[tuple[int, int], tuple[int, int]]:
    """Addresses of both BARs, and where the window begins and ends."""
    path = f"/sys/bus/pci/devices/{node.address(slave.vm)}/resource"
    rows = [line.split() for line in slave.vm.run(f"cat {path}").stdout.splitlines()]
    registers, window = int(rows[0][0], 16), int(rows[2][0], 16)
    return (registers, window), (window, int(rows[2][1], 16))


def user_pages(slave: Slave, low: int, high: int) -> list[str]:
    """Return the page table flags of the window's pages in the running program."""
    text = slave.vm.qmp("human-monitor-command", **{"command-line": "info tlb"})
    found = re.findall(r"^0000([0-9a-f]{12}): ([0-9a-f]{16}) (\S+)", text, re.M)
    return [flags for _, at, flags in found if low <= int(at, 16) <= high]


def test_second_program_is_told_that_the_device_is_in_use(slave: Slave) -> None:
    node.use(slave.vm)
    second = slave.vm.run(
        ["python3", "/tmp/node.py", node.address(slave.vm), "3"], check=False
    )
    assert "Device or resource busy" in second.stderr


def test_private_mapping_is_refused(slave: Slave) -> None:
    """A private mapping has pages that can be copied; the kernel would stop at that."""
    tried = slave.vm.run(["python3", "-c", PRIVATE, node.address(slave.vm)])
    assert tried.stdout == "EINVAL EINVAL\n"


PRIVATE = """
import errno, mmap, os, sys
from pathlib import Path
name = next(Path(f"/sys/bus/pci/devices/{sys.argv[1]}/uio").iterdir()).name
node = os.open(f"/dev/{name}", os.O_RDWR)
def attempt(**options):
    try:
        mmap.mmap(node, 4096, offset=4096, **options)[0]
        return "mapped"
    except OSError as error:
        return errno.errorcode[error.errno]
print(attempt(flags=mmap.MAP_PRIVATE), attempt(access=mmap.ACCESS_COPY))
"""


@pytest.mark.parametrize("by", ["node", "window"])
def test_mapping_may_be_split_moved_and_inherited(slave: Slave, by: str) -> None:
    """Each part of the mapping still shows the same pages, in each process."""
    for page in range(5):
        os.pwrite(slave.memory[0], bytes([page]), page * 4096)
    mapped = slave.vm.run(["python3", "-c", parts.PARTS, node.address(slave.vm), by])
    assert mapped.stdout == "0 1 3 4 1\n"


@pytest.mark.parametrize("by", ["node", "window"])
def test_huge_pages_may_be_split_moved_and_inherited(slave: Slave, by: str) -> None:
    """As above, but the parts are cut out of huge pages that are mapped already."""
    for page in range(0, 4 * 512, 128):
        os.pwrite(slave.memory[0], struct.pack("=H", page), page * 4096)
    place = node.address(slave.vm)
    mapped = slave.vm.run(["python3", "-c", parts.HUGE_PARTS, place, by])
    assert mapped.stdout.split() == [
        *("0", "384", "hole", "640"),  # a hole in the first, on both sides of it
        *("512", "1024", "1280", "refused"),  # a read-only page in the second
        *("1536", "1664", "1536", "1664"),  # the last one moved, aligned and not
        *("384", "1280", "1664"),  # in a child
        *("512", "gone", "1024"),  # the second unmapped whole
    ]


def test_huge_page_is_not_pinned_as_if_it_were_memory(slave: Slave) -> None:
    """A BAR has no struct page, so who pins pages must be told that none is there."""
    pinned = slave.vm.run(["python3", "-c", PIN, node.address(slave.vm)])
    assert pinned.stdout == "EFAULT\n"


PIN = """
import ctypes, errno, os, sys
from vhostpci_guest.pci import bindings, search

window = bindings.bind(search.at(sys.argv[1]), "kmod").window
window.view[0]
words = (ctypes.c_size_t * 2)(window.address, 4096)
libc = ctypes.CDLL(None, use_errno=True)
assert libc.vmsplice(os.pipe()[1], words, 1, 0) == -1
print(errno.errorcode[ctypes.get_errno()])
"""


def test_unbound_while_it_is_waited_for(slave: Slave) -> None:
    job = node.use(slave.vm)
    node.unbind(slave.vm)
    assert end(job) == 1
    assert "gone" in job.output()
    node.bind(slave.vm)
    ring(slave, 0)
    node.use(slave.vm).wait_said("vector 0")


def test_unbound_while_it_is_read(slave: Slave) -> None:
    """The pages are removed, so that none shows the next device at that address."""
    job = node.use(slave.vm, "read")
    node.unbind(slave.vm)
    assert end(job) == SIGBUS, job.output()


def test_unplugged_while_it_is_read(slave: Slave) -> None:
    job = node.use(slave.vm, "read")
    slave.ask_back(0)
    assert slave.goes(0)
    assert end(job) == SIGBUS, job.output()


def test_unplugged_while_it_is_waited_for(slave: Slave) -> None:
    job = node.use(slave.vm)
    slave.ask_back(0)
    assert slave.goes(0)
    assert end(job) == 1
    assert "gone" in job.output()


def test_module_is_not_removed_while_in_use(slave: Slave) -> None:
    job = node.use(slave.vm)
    tried = slave.vm.run("rmmod uio_vhostpci", check=False)
    assert "Module uio_vhostpci is in use" in tried.stderr
    node.unbind(slave.vm)
    end(job)
    slave.vm.run("rmmod uio_vhostpci && modprobe uio_vhostpci")
    ring(slave, 1)
    node.use(slave.vm).wait_said("vector 1")


@not_with_kasan("the window's shadow, 128 MiB, is freed after the next one is made")
def test_bound_again_a_hundred_times(slave: Slave) -> None:
    """Nothing that a bind allocates may be leaked."""
    place = node.address(slave.vm)
    slave.vm.run(
        f"for n in $(seq 100); do echo {place} > {node.DRIVER}/unbind && "
        f"echo {place} > {node.DRIVER}/bind || exit 1; done",
        timeout=60,
    )
    ring(slave, 2)
    node.use(slave.vm).wait_said("vector 2")


def test_suspend_keeps_the_mapping_and_signals_each_vector(slave: Slave) -> None:
    """Signals during the suspend are lost, so each vector is signalled after it."""
    job = node.use(slave.vm)
    power.suspend_devices(slave.vm)
    job.wait_said("vector 0", "vector 1", "vector 2")
    before = job.output().count("vector 1")
    ring(slave, 1)
    slave.vm.wait_until(lambda: job.output().count("vector 1") > before, job.output)
    assert job.poll() is None


def test_device_without_vectors_is_refused(slave: Slave) -> None:
    """ivshmem-plain has the same PCI IDs, and is for other drivers."""
    backend = {"qom-type": "memory-backend-ram", "id": "plain", "size": MIB}
    slave.monitor.execute("object-add", backend)
    device = {"driver": "ivshmem-plain", "id": "p", "memdev": "plain", "bus": "port1"}
    slave.monitor.execute("device_add", device)
    slave.vm.wait_for("dmesg | grep -q 'no MSI-X: ivshmem-plain'")
    slave.monitor.execute("device_del", {"id": "p"})
    assert slave.monitor.deleted("p", 60)
    slave.monitor.execute("object-del", {"id": "plain"})

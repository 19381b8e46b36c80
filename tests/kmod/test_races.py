# SPDX-License-Identifier: Apache-2.0
"""The module is unbound and bound while programs use it, in a debug kernel.

 test (ivshmem server)            slave: KASAN, lockdep, kmemleak; two processors
window 0 --- QMP --- root port --- uio_vhostpci --- programs that come and go

And once with a master (Debian's kernel), our daemon, and our agent in that slave.

Only ``tox -e kmod-debug`` runs these tests: the kernel takes ten minutes to build.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from tests.vm import dmesg, node, pair, traffic
from tests.vm.bare_slave import Slave, module_loaded
from tests.vm.debug_kernel import DEBUG, under_test
from tests.vm.harness import Job
from tests.vm.pair import MASTER_ADDRESS

pytestmark = [
    pytest.mark.vm,
    pytest.mark.skipif(DEBUG not in under_test(), reason="by name: tox -e kmod-debug"),
]

MIB = 2**20
SIGBUS = -7

# Opens each node, maps a part of the window, arms vectors, has a child read (also by a
# window file), and signals a tied eventfd, for so many seconds; says how often.  Where
# other programs take the processors it may not get to the end once while the device is
# bound and unbound all the time, so it goes on until it has.
COME_AND_GO = """
import fcntl, glob, mmap, os, signal, struct, sys, time
signal.alarm(600)
end, times, eventfd = time.monotonic() + float(sys.argv[1]), 0, os.eventfd(0)
call = os.eventfd(0, os.EFD_NONBLOCK)

def use_control(node):
    control = os.open("/dev/uio_vhostpci", os.O_RDWR)
    try:
        with os.fdopen(fcntl.ioctl(control, 0xA700, node), "r+b", 0) as file:
            again = mmap.mmap(file.fileno(), 4 * mmap.PAGESIZE)
        fcntl.ioctl(control, 0x400CA701, struct.pack("=iiHH", node, call, 0, 7))
        os.eventfd_write(call, 1)
        if times % 2:
            fcntl.ioctl(control, 0x400CA702, struct.pack("=iiHH", node, call, 0, 7))
        return again
    finally:
        os.close(control)

def use(path):
    node = os.open(path, os.O_RDWR)
    try:
        window = mmap.mmap(node, 4 * mmap.PAGESIZE, offset=mmap.PAGESIZE)
        for vector in range(3):
            os.write(node, struct.pack("=i", vector << 20 | eventfd))
        again = use_control(node)
        if not os.fork():
            again[0], window[0], os._exit(0)
        os.wait()
    finally:
        os.close(node)
        os.eventfd_write(call, 1)

while time.monotonic() < end or not times:
    for path in glob.glob("/dev/uio*"):
        try:
            use(path)
            times += 1
        except OSError:
            pass  # another program has it open, or it is being unbound
print(f"used {times} times", flush=True)
"""

# Maps the window, and then maps and reads it again in a loop: by the UIO node, or by a
# window file.
PUT_IN = """
import fcntl, mmap, os, signal, sys
signal.alarm(600)
file, offset = os.open(sys.argv[1], os.O_RDWR), mmap.PAGESIZE
if sys.argv[2] == "window":
    file = fcntl.ioctl(os.open("/dev/uio_vhostpci", os.O_RDWR), 0xA700, file)
    offset = 0
size = 16 * 2**20
window = mmap.mmap(file, size, offset=offset)
print("maps", flush=True)
while True:
    try:
        with mmap.mmap(file, size, offset=offset) as again:
            for at in range(0, size, 2**18):
                again[at]
    except OSError:
        window[0]
"""


@pytest.fixture(scope="module")
def booted(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Slave]:
    """A VM with two processors."""
    logs = tmp_path_factory.mktemp("races")
    with module_loaded(logs, DEBUG, "-smp", "2") as slave:
        yield slave


@pytest.fixture
def slave(booted: Slave) -> Iterator[Slave]:
    """The booted VM with a bound device; after the test all devices are unplugged."""
    booted.plug(0, 16 * MIB, "port0", vectors=3)
    node.address(booted.vm)
    yield booted
    booted.close()


@contextmanager
def coming_and_going(slave: Slave, seconds: int = 15) -> Iterator[None]:
    """Have two programs use the device while the block runs; check that both did."""
    slave.vm.put("/tmp/come.py", COME_AND_GO.encode())
    jobs = [slave.vm.spawn(["python3", "/tmp/come.py", str(seconds)]) for _ in "12"]
    yield
    for job in jobs:
        assert ended(slave, job, 100) == 0, job.output()


def ended(slave: Slave, job: Job, seconds: float) -> int:
    """Return a program's exit status; the seconds are of the guest's own time."""
    wait_until = slave.vm.wait_until
    wait_until(lambda: job.poll() is not None, job.output, seconds)
    status = job.poll()
    assert status is not None
    return status


def test_the_kernel_watches_itself(slave: Slave) -> None:
    """lockdep must be on: it turns itself off after its first report."""
    vm = slave.vm
    assert "debug_locks:                             1" in vm.run(
        "cat /proc/lockdep_stats"
    ).stdout.replace("\t", " ")
    vm.run("dmesg | grep KernelAddressSanitizer && test -e /sys/kernel/debug/kmemleak")


def test_bound_and_unbound_while_programs_come_and_go(slave: Slave) -> None:
    place = node.address(slave.vm)
    with coming_and_going(slave):
        slave.vm.run(
            f"for n in $(seq 60); do echo {place} > {node.DRIVER}/unbind && "
            f"echo {place} > {node.DRIVER}/bind || exit 1; done",
            timeout=100,
        )


def test_removed_and_loaded_while_programs_come_and_go(slave: Slave) -> None:
    """The module can be removed only while no program has the node open."""
    with coming_and_going(slave):
        slave.vm.run(
            "for n in $(seq 40); do rmmod uio_vhostpci 2>&1 | grep -v 'in use'; "
            "modprobe uio_vhostpci || exit 1; done",
            timeout=100,
        )


@pytest.mark.parametrize("by", ["node", "window"])
def test_unbound_while_pages_are_put_in(slave: Slave, by: str) -> None:
    place = node.address(slave.vm)
    for _ in range(10):
        job = putting_in(slave, place, by)
        slave.vm.run(f"sleep 0.3; echo {place} > {node.DRIVER}/unbind")
        assert ended(slave, job, 60) == SIGBUS, job.output()
        slave.vm.run(f"echo {place} > {node.DRIVER}/bind")


def putting_in(slave: Slave, place: str, by: str) -> Job:
    """Start a program that makes page faults in the window in a loop."""
    vm = slave.vm
    vm.put("/tmp/put_in.py", PUT_IN.encode())
    name = vm.run(f"ls /sys/bus/pci/devices/{place}/uio").stdout.strip()
    job = vm.spawn(["python3", "/tmp/put_in.py", f"/dev/{name}", by])
    job.wait_said("maps")
    return job


def test_bound_again_and_removed_under_traffic(tmp_path: Path) -> None:
    with pair.booted(tmp_path, kernel=DEBUG, module=True) as link:
        vm = link.slave
        vm.run("mount -t debugfs debugfs /sys/kernel/debug && modprobe uio_vhostpci")
        place = node.address(vm)
        with vm.agent("kmod"):
            link.master.configure()
            for _ in range(3):
                link.wait_link()
                with traffic.pinging(vm, MASTER_ADDRESS, interval=0.02):
                    vm.run(f"sleep 1; echo {place} > {node.DRIVER}/unbind; sleep 1")
                    vm.run(f"echo {place} > {node.DRIVER}/bind")
            link.wait_link()
        vm.run("modprobe -r uio_vhostpci")
        dmesg.check(vm)

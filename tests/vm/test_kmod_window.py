# SPDX-License-Identifier: Apache-2.0
"""Window files and ties of the slave's kernel module: what a back-end gets of it.

 test (ivshmem server and peer 7)            slave
window 0, doorbells --- QMP --- root port --- uio_vhostpci --- programs
"""

import os
import signal
import time
from collections.abc import Iterator

import pytest

from tests.vm import node, vector_loop, window_file
from tests.vm.bare_slave import Slave
from tests.vm.window_file import said, start

pytestmark = pytest.mark.vm

MIB = 2**20
SIZE = 1024 * MIB
PEER = 7
SIGBUS = -signal.SIGBUS


@pytest.fixture
def slave(module_booted: Slave) -> Iterator[Slave]:
    """The booted VM with a bound device; after the test all devices are unplugged."""
    memory = module_booted.plug(0, SIZE, "port0", vectors=3)
    os.pwrite(memory, b"\x2a", 5)
    yield module_booted
    module_booted.close()


@pytest.fixture
def peer(slave: Slave) -> list[int]:
    """The eventfds of the vectors of another peer."""
    return slave.meet(0, PEER)


def rung(eventfd: int) -> int:
    """Return how often a doorbell was rung, and forget that."""
    try:
        return os.eventfd_read(eventfd)
    except BlockingIOError:
        return 0


# Window files.


def test_window_file_is_the_window_from_its_first_byte_on(slave: Slave) -> None:
    words = said(slave.vm, FROM_ITS_FIRST_BYTE)
    assert words[:5] == [str(SIZE), str(SIZE), "42", "42", slave_name(slave)]
    assert words[5:] == ["EINVAL"] * 6
    assert os.pread(slave.memory[0], 1, SIZE - 1) == b"\x07"


def slave_name(slave: Slave) -> str:
    """Return the name that mappings of the window file have."""
    return f"/vhostpci:{node.address(slave.vm)}"


FROM_ITS_FIRST_BYTE = """
file = open_window(open_node())
view = map_window(file)
say(len(view), os.fstat(file).st_size, view[5])
view[-1] = 7
with mmap.mmap(file, 2 * PAGE, offset=0) as part:
    say(part[5])
maps = Path("/proc/self/maps").read_text()
say(next(word for word in maps.split() if "vhostpci:" in word))
say_error(mmap.mmap, file, PAGE, flags=mmap.MAP_PRIVATE)
say_error(mmap.mmap, file, 2 * PAGE, offset=len(view) - PAGE)
say_error(mmap.mmap, file, PAGE, offset=len(view))
say_error(mmap.mmap, file, PAGE, offset=len(view) + PAGE)
say_error(os.read, file, 1)
say_error(os.write, file, b"x")
"""


def test_it_has_huge_pages_although_the_kernel_chooses_the_address(
    slave: Slave,
) -> None:
    """Touch each huge page of 1 GiB; page tables for it all take 2 MiB."""
    tables = int(said(slave.vm, TOUCH)[0])
    assert tables < 64 if node.has_huge_pages(slave.vm) else tables >= 2048


TOUCH = """
def tables():
    status = Path("/proc/self/status").read_text()
    return int(status.split("VmPTE:")[1].split()[0])

view = map_window(open_window(open_node()))
before = tables()
for at in range(0, len(view), HUGE):
    view[at]
say(tables() - before)
"""


def test_it_outlives_the_program_that_gave_it_away(slave: Slave) -> None:
    """And keeps no other program from opening the UIO node."""
    back_end = start(slave.vm, window_file.BACK_END, "reads 42")
    node.use(slave.vm).send(signal.SIGKILL)
    time.sleep(0.2)
    assert back_end.poll() is None


def test_unbound_while_a_back_end_reads_it(slave: Slave) -> None:
    back_end = start(slave.vm, window_file.BACK_END, "reads 42")
    node.unbind(slave.vm)
    assert back_end.wait(10) == SIGBUS, back_end.output()
    node.bind(slave.vm)
    start(slave.vm, window_file.BACK_END, "reads 42")


def test_unplugged_while_a_back_end_reads_it(slave: Slave) -> None:
    back_end = start(slave.vm, window_file.BACK_END, "reads 42")
    slave.ask_back(0)
    assert slave.goes(0)
    assert back_end.wait(10) == SIGBUS, back_end.output()


def test_window_file_of_a_device_that_is_gone_is_not_mapped(slave: Slave) -> None:
    back_end = start(slave.vm, window_file.BACK_END, "reads 42", "once")
    node.unbind(slave.vm)
    back_end.send(signal.SIGUSR1)
    back_end.wait_said("ENODEV")
    node.bind(slave.vm)


def test_next_window_file_revokes_the_one_before(slave: Slave) -> None:
    """What a killed agent gave away ends when its successor gives a new one."""
    old = start(slave.vm, window_file.BACK_END, "reads 42")
    new = start(slave.vm, window_file.BACK_END, "reads 42")
    assert old.wait(10) == SIGBUS, old.output()
    time.sleep(0.2)
    assert new.poll() is None, new.output()


def test_module_is_not_removed_while_a_window_file_is_open(slave: Slave) -> None:
    back_end = start(slave.vm, window_file.BACK_END, "reads 42")
    tried = slave.vm.run("rmmod uio_vhostpci", check=False)
    assert "Module uio_vhostpci is in use" in tried.stderr
    back_end.send(signal.SIGKILL)
    back_end.wait(10)
    slave.vm.wait_for("rmmod uio_vhostpci")
    slave.vm.run("modprobe uio_vhostpci")


def test_request_without_the_devices_node_is_refused(slave: Slave) -> None:
    assert said(slave.vm, WITHOUT_THE_NODE) == [
        *("EBADF", "ENODEV", "ENODEV", "EACCES"),  # window file
        *("EBADF", "ENODEV", "ENODEV", "EACCES"),  # tie
        *("EFAULT", "ENOTTY"),
    ]


WITHOUT_THE_NODE = """
eventfd, other = os.eventfd(0), os.open("/dev/null", os.O_RDWR)
closed = open_node()
os.close(closed)
say_error(open_window, closed)
say_error(open_window, other)
say_error(open_window, control)
node = open_node(os.O_RDONLY)
say_error(open_window, node)
os.close(node)
say_error(tie, closed, eventfd)
say_error(tie, other, eventfd)
say_error(tie, eventfd, eventfd)
node = open_node(os.O_RDONLY)
say_error(tie, node, eventfd)
say_error(fcntl.ioctl, control, TIE, 1)
say_error(fcntl.ioctl, control, 0xA703, node)
"""


# Ties.


def test_eventfd_rings_the_doorbell_that_it_is_tied_to(
    slave: Slave, peer: list[int]
) -> None:
    job = start(slave.vm, RING, "tied")
    for vector in (1, 0, 1):
        job.send(signal.SIGUSR1 if vector == 0 else signal.SIGUSR2)
        slave.vm.wait_until(lambda: rung(peer[vector]) == 1, job.output)  # noqa: B023
        assert rung(peer[1 - vector]) == 0


# Signals an eventfd of its own at each SIGUSR1, another at SIGUSR2.
RING = """
node, eventfds = open_node(), [os.eventfd(0, os.EFD_NONBLOCK) for _ in range(2)]

def ring(number, _):
    os.eventfd_write(eventfds[number == signal.SIGUSR2], 1)

signal.signal(signal.SIGUSR1, ring)
signal.signal(signal.SIGUSR2, ring)
if "early" in sys.argv:
    ring(signal.SIGUSR1, 0)
for vector, eventfd in enumerate(eventfds):
    tie(node, eventfd, vector=vector)
if "untie" in sys.argv:
    untie(node, eventfds[0])
if "close" in sys.argv:
    os.close(node)
say("tied")
while True:
    signal.pause()
    say(*(eventfd for eventfd in eventfds if select.select([eventfd], [], [], 0)[0]))
"""


def test_signal_from_before_the_tie_is_not_lost(slave: Slave, peer: list[int]) -> None:
    job = start(slave.vm, RING, "tied", "early")
    slave.vm.wait_until(lambda: rung(peer[0]) == 1, job.output)


def test_eventfd_that_is_untied_rings_nothing(slave: Slave, peer: list[int]) -> None:
    job = start(slave.vm, RING, "tied", "untie")
    job.send(signal.SIGUSR1)
    time.sleep(0.2)
    job.send(signal.SIGUSR2)
    slave.vm.wait_until(lambda: rung(peer[1]) == 1, job.output)
    assert rung(peer[0]) == 0


def test_ties_end_when_the_node_is_closed(slave: Slave, peer: list[int]) -> None:
    job = start(slave.vm, RING, "tied", "close")
    job.send(signal.SIGUSR1)
    time.sleep(0.5)
    assert [rung(fd) for fd in peer] == [0, 0]
    assert job.poll() is None


def test_ties_end_when_the_device_is_unbound(slave: Slave, peer: list[int]) -> None:
    job = start(slave.vm, RING, "tied")
    node.unbind(slave.vm)
    job.send(signal.SIGUSR1)
    time.sleep(0.5)
    assert [rung(fd) for fd in peer] == [0, 0]
    assert job.poll() is None
    node.bind(slave.vm)


def test_bad_tie_is_refused(slave: Slave) -> None:
    assert said(slave.vm, BAD_TIES) == [
        *("EBADF", "EINVAL", "done", "EBUSY", "done", "ENOENT", "done"),
        *("ENOSPC", "1023", "done", "ENOSPC"),
    ]


BAD_TIES = """
node, eventfd = open_node(), os.eventfd(0)
say_error(tie, node, 999)
say_error(tie, node, node)
say_error(tie, node, eventfd)
say_error(tie, node, eventfd, vector=1)  # tied already
say_error(untie, node, eventfd)
say_error(untie, node, eventfd)
say_error(tie, node, eventfd, peer=2**16 - 1, vector=2**16 - 1)  # no such peer
os.eventfd_write(eventfd, 1)
resource.setrlimit(resource.RLIMIT_NOFILE, (2048, 2048))
ties = []

def tie_all():
    while True:
        ties.append(os.eventfd(0))
        tie(node, ties[-1])

say_error(tie_all)
say(len(ties) - 1)
os.close(ties[0])  # makes place for one
say_error(tie, node, ties[-1])
say_error(tie, node, os.eventfd(0))
"""


def test_interrupt_does_not_ring_the_doorbell_of_its_own_vector(slave: Slave) -> None:
    vector_loop.assert_none(slave)


def test_agent_has_a_window_file_and_ties(slave: Slave, peer: list[int]) -> None:
    assert said(slave.vm, AGENT) == ["no", "reason", str(SIZE), "42"]
    slave.vm.wait_until(lambda: rung(peer[1]) == 1, lambda: "no call")


AGENT = """
from vhostpci_guest.pci import bindings, search
device = bindings.bind(search.at(sys.argv[1]), "kmod")
window, doorbell = device.window, device.doorbell(7, 1)
say(window.no_file or "no reason")
say(os.lseek(window.file.fd, 0, os.SEEK_END), map_window(window.file.fd)[5])
eventfd = os.eventfd(0, os.EFD_NONBLOCK)
tied = doorbell.ties.tie(eventfd, doorbell.peer, doorbell.vector)
os.eventfd_write(eventfd, 1)
tied.close()
os.eventfd_write(eventfd, 1)
device.close()
"""


def test_agent_takes_its_window_back_at_the_end(slave: Slave) -> None:
    said = start(slave.vm, TAKEN_BACK, "ended").output()
    assert "had not unmapped the window within" in said
    assert said.endswith(f"ended {signal.SIGBUS}\n")


# A back-end that was given the window file does not unmap it.
TAKEN_BACK = """
import logging
from vhostpci_guest.pci import bindings, search
logging.basicConfig()
device = bindings.bind(search.at(sys.argv[1]), "kmod")
file = device.window.file
ready, mapped = os.pipe()
if not (back_end := os.fork()):
    view = map_window(file.fd)
    os.write(mapped, b".")
    while True:
        view[:PAGE]
os.read(ready, 1)
file.holders.append(back_end)
device.close()
say("ended", os.waitpid(back_end, 0)[1])
"""

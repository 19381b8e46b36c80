# SPDX-License-Identifier: Apache-2.0
"""Guards: a process survives the loss of memory that it has mapped, and sees it."""

import mmap
import os
import select
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress

import pytest

from tests.fakes.driver import Desc, Region
from tests.fakes.pair import CAN_CONFINE, HDR, RX, TX, Pair
from tests.waiting import eventually
from vhostpci_guest.dataplane.faults import Fault, RingError
from vhostpci_guest.dataplane.native import Guard, RingIndex, address_of
from vhostpci_shared.metadata import AgentRingState

PAGE = mmap.PAGESIZE
SESSION = 7

each = pytest.mark.parametrize("index", [RX, TX], ids=["rx", "tx"])


@contextmanager
def region(size: int = 4 * PAGE) -> Iterator[Region]:
    region = Region(0, size)
    try:
        yield region
    finally:
        region.close()


@contextmanager
def guarded(*regions: Region) -> Iterator[list[Guard]]:
    with ExitStack() as stack:
        guards = [Guard(region.host_addr, region.size) for region in regions]
        for guard in guards:
            stack.callback(guard.close)
        yield guards


def readable(guard: Guard) -> bool:
    return bool(select.select([guard], [], [], 0)[0])


# Reading and writing in Python, as the agent does with the metadata region.


def test_a_file_that_stays_is_not_lost() -> None:
    with region() as memory, guarded(memory) as [guard]:
        memory.bytes[0] = 1
        assert memory.bytes[0] == 1
        assert not guard.lost
        assert not readable(guard)


def test_a_file_that_shrinks_reads_as_zeros_and_is_lost() -> None:
    with region() as memory, guarded(memory) as [guard]:
        memory.bytes[0] = 1
        memory.cut()
        assert memory.words[4][0] == 0
        assert guard.lost
        assert readable(guard)


def test_a_file_that_shrinks_may_be_written_to() -> None:
    with region() as memory, guarded(memory) as [guard]:
        memory.cut()
        memory.words[8][1] = 5
        assert memory.words[8][1] == 5
        assert guard.lost


def test_the_whole_range_is_zeros_after_the_first_access() -> None:
    with region() as memory, guarded(memory) as [guard]:
        memory.bytes[:] = b"x" * memory.size
        memory.cut()
        assert memory.bytes[0] == 0
        assert not any(memory.bytes)
        assert os.eventfd_read(guard.fileno()) == 1


def test_a_file_that_ends_within_a_page_is_guarded_to_that_pages_end() -> None:
    with region(PAGE + 100) as memory, guarded(memory) as [guard]:
        memory.cut()
        assert memory.bytes[PAGE + 99] == 0
        assert guard.lost


def test_huge_pages_that_are_gone_are_zeros() -> None:
    """The machine needs no huge pages: MAP_NORESERVE does not reserve them."""
    huge, no_reserve = 2 << 20, 0x4000
    fd = os.memfd_create("huge", os.MFD_HUGETLB | os.MFD_HUGE_2MB)
    try:
        os.ftruncate(fd, 2 * huge)
        with mmap.mmap(fd, 2 * huge, mmap.MAP_SHARED | no_reserve) as memory:
            os.ftruncate(fd, 0)
            guard = Guard(address_of(memory), len(memory))
            assert memory[huge + 5] == 0
            assert guard.lost
            guard.close()
    finally:
        os.close(fd)


def test_only_what_shrank_is_lost() -> None:
    with region() as one, region() as two, guarded(one, two) as [first, second]:
        one.bytes[0] = two.bytes[0] = 1
        two.cut()
        assert (one.bytes[0], two.bytes[0]) == (1, 0)
        assert (first.lost, second.lost) == (False, True)
        assert not readable(first)


def test_a_guard_can_be_used_again_for_other_memory() -> None:
    for _ in range(3):
        with region() as memory, guarded(memory) as [guard]:
            assert not guard.lost
            memory.cut()
            assert memory.bytes[0] == 0
            assert guard.lost


@pytest.mark.parametrize(
    ("address", "size"),
    [(0, PAGE), (PAGE + 1, PAGE), (PAGE, 0), (2**64 - PAGE, 2 * PAGE)],
    ids=["nowhere", "within a page", "empty", "wraps"],
)
def test_a_range_that_cannot_be_a_mapping_is_refused(address: int, size: int) -> None:
    with pytest.raises(RingError, match="are no mapping"):
        Guard(address, size)


def test_too_many_guards_are_refused() -> None:
    def take_all(stack: ExitStack) -> None:
        for _ in range(4097):
            stack.callback(Guard(memory.host_addr, memory.size).close)

    # A machine may allow a process fewer descriptors than there can be guards.
    refusal = pytest.raises(OSError, match=r"there are too many|Too many open files")
    with region() as memory, ExitStack() as stack, refusal:
        take_all(stack)


# The worker.


@contextmanager
def pair(
    *, threaded: bool, confine: bool = False
) -> Iterator[tuple[Pair, list[Guard]]]:
    """Rings in a session that runs, in guarded memory."""
    with (
        Pair(num=64, threaded=threaded, running=False, confine=confine) as pair,
        guarded(*pair.memory.regions) as guards,
    ):
        for index in RingIndex:
            pair.memory.store(pair.meta[index], 8, SESSION)
            pair.start(index, session=SESSION)
        yield pair, guards


class Traffic:
    """Keeps both rings busy; the driver ignores errors in what it reads."""

    def __init__(self, pair: Pair) -> None:
        self._pair = pair
        self._buffers = [Desc(pair.memory.allocate(200), 200) for _ in range(64)]

    def step(self) -> None:
        for driver in (self._pair.tx, self._pair.rx):
            with suppress(AssertionError, LookupError):
                driver.collect()
                driver.offer(self._buffers[driver.avail_idx % 64])
            os.eventfd_write(driver.kick_fd, 1)
        with suppress(BlockingIOError):
            self._pair.tap.send(HDR + bytes(100))
        self._pair.packets()


def test_rings_that_lose_their_memory_in_mid_flight_stop() -> None:
    with pair(threaded=True) as (pair_, guards):
        traffic = Traffic(pair_)
        for _ in range(500):
            traffic.step()

        def flows() -> bool:
            traffic.step()
            return all(pair_.status(index).stats.packets for index in RingIndex)

        assert eventually(flows)
        pair_.memory.regions[-1].cut()

        def both_stopped() -> bool:
            traffic.step()
            states = {pair_.state(index) for index in RingIndex}
            return states <= {AgentRingState.FENCED, AgentRingState.BROKEN}

        assert eventually(both_stopped)
        assert [guard.lost for guard in guards] == [False, False, True]
        assert pair_.events() >= 1


@pytest.mark.parametrize("confine", [False, CAN_CONFINE])
def test_the_thread_of_a_worker_survives_the_loss_of_its_ring(confine: bool) -> None:
    """The thread must not block SIGBUS, although it blocks other signals."""
    with pair(threaded=True, confine=confine) as (pair_, guards):
        pair_.memory.regions[-1].cut()
        os.eventfd_write(pair_.tx.kick_fd, 1)
        assert eventually(lambda: pair_.state(TX) == AgentRingState.FENCED)
        assert pair_.status(TX).fault == Fault.SESSION
        assert guards[-1].lost


def test_two_workers_may_lose_the_same_memory_at_once() -> None:
    with pair(threaded=True) as (pair_, guards), Pair(threaded=True) as other:
        other.worker.stop(TX)
        other.worker.stop(RX)
        other.worker.set_memory(pair_.memory.table())
        for _ in range(50):
            other.worker.start(RX, pair_.conf(RX, session=SESSION, kick_fd=None))
            assert other.state(RX) == AgentRingState.RUNNING
            other.worker.stop(RX)
        other.worker.start(RX, pair_.conf(RX, session=SESSION, kick_fd=None))
        pair_.memory.regions[-1].cut()
        os.eventfd_write(pair_.tx.kick_fd, 1)
        assert eventually(lambda: pair_.state(TX) == AgentRingState.FENCED)
        assert eventually(lambda: other.state(RX) == AgentRingState.FENCED)
        assert guards[-1].lost


@each
def test_a_system_call_on_lost_buffers_breaks_the_ring(index: RingIndex) -> None:
    """The kernel gets EFAULT, not a signal; the rings lie in another region."""
    with Pair(num=32) as pair:
        buffers = pair.memory.regions[0]
        buffers.cut()
        for _ in range(20):
            pair.driver(index).offer(Desc(buffers.guest_addr, 200))
            if index == RX:
                pair.tap.send(HDR + b"x")

        def broken() -> bool:
            pair.settle()
            return pair.state(index) == AgentRingState.BROKEN

        assert eventually(broken)
        status = pair.status(index)
        assert (status.state, status.fault) == (AgentRingState.BROKEN, Fault.MEMORY)
        assert "the master's memory" in status.reason
        assert pair.worker.step() == 0  # at rest: it does not try again


def test_a_thread_that_met_lost_buffers_does_not_spin() -> None:
    with Pair(threaded=True, num=32) as pair:
        pair.memory.regions[0].cut()
        for _ in range(20):
            pair.tx.offer(Desc(pair.memory.regions[0].guest_addr, 200))
        pair.tx.kick()
        assert eventually(lambda: pair.state(TX) == AgentRingState.BROKEN)
        began = time.process_time()
        time.sleep(0.3)
        assert time.process_time() - began < 0.1


# A SIGBUS outside all guards ends a process, so these tests start another one.

START = """
import faulthandler, mmap, os, resource, signal
from vhostpci_guest.dataplane.native import Guard, address_of

def memory(size=4096):
    fd = os.memfd_create("memory")
    os.ftruncate(fd, size)
    return fd, mmap.mmap(fd, size)

fd, ours = memory()
"""
# An access that the handler does not help is made again without end, in C, where no
# time limit of pytest ends it.  Processor time, as the machine may be loaded.
NO_LOOP = "signal.setitimer(signal.ITIMER_PROF, 2)\n"
GUARD = "guard = Guard(address_of(ours), len(ours))\n"
FOREIGN = """
fd, theirs = memory()
os.ftruncate(fd, 0)
theirs[0]
"""


def run(program: str) -> subprocess.CompletedProcess[str]:
    """Run a program in another process."""
    return subprocess.run(
        [sys.executable, "-c", START + program],
        capture_output=True,
        text=True,
        timeout=60,
    )


def died_of_it(process: subprocess.CompletedProcess[str]) -> bool:
    """Whether a SIGBUS ended the process, or a sanitizer that saw one."""
    return (
        process.returncode == -signal.SIGBUS
        or "AddressSanitizer: BUS" in process.stderr
    )


@pytest.mark.parametrize(
    "program",
    [
        GUARD + FOREIGN,
        GUARD + "guard.close()\nos.ftruncate(fd, 0)\nours[0]\n",
        GUARD + "os.kill(os.getpid(), signal.SIGBUS)\nsignal.pause()\n",
        GUARD + "os.ftruncate(fd, 0)\nours[0]\n" + FOREIGN,
    ],
    ids=["other memory", "guard closed", "sent by kill", "after one of ours"],
)
def test_a_bus_error_outside_all_guards_ends_the_process(program: str) -> None:
    assert died_of_it(run(program))


@pytest.mark.parametrize(
    "program",
    ["faulthandler.enable()\n" + GUARD, GUARD + "faulthandler.enable()\n" + GUARD],
    ids=["before", "between"],
)
def test_faulthandler_reports_a_bus_error_outside_all_guards(program: str) -> None:
    process = run(program + FOREIGN)
    assert "Fatal Python error: Bus error" in process.stderr
    assert died_of_it(process)


@pytest.mark.parametrize("first", ["", "faulthandler.enable()\n"])
def test_faulthandler_does_not_report_a_bus_error_inside_a_guard(first: str) -> None:
    process = run(first + GUARD + "os.ftruncate(fd, 0)\nassert ours[0] == 0\n")
    assert (process.returncode, process.stderr) == (0, "")


def test_a_guard_covers_the_whole_of_its_last_page() -> None:
    process = run(
        """
fd, ours = memory(2 * mmap.PAGESIZE)
guard = Guard(address_of(ours), mmap.PAGESIZE + 100)
os.ftruncate(fd, 0)
assert ours[2 * mmap.PAGESIZE - 1] == 0
assert guard.lost
"""
    )
    assert (process.returncode, process.stderr) == (0, "")


def test_an_access_behind_the_first_page_does_not_loop() -> None:
    process = run(
        f"""
fd, ours = memory(4 * mmap.PAGESIZE)
{GUARD}
os.ftruncate(fd, 0)
{NO_LOOP}
assert ours[3 * mmap.PAGESIZE] == 0
assert guard.lost
"""
    )
    assert (process.returncode, process.stderr) == (0, "")


def test_an_access_to_what_the_second_guard_has_does_not_loop() -> None:
    process = run(
        f"""
{GUARD}
fd, theirs = memory()
second = Guard(address_of(theirs), len(theirs))
os.ftruncate(fd, 0)
{NO_LOOP}
assert theirs[0] == 0
assert (guard.lost, second.lost) == (False, True)
"""
    )
    assert (process.returncode, process.stderr) == (0, "")


@pytest.mark.parametrize("first", [0, 1], ids=["lower first", "upper first"])
@pytest.mark.parametrize("at", ["PAGE", "2 * PAGE - 1"])
def test_a_guard_ends_where_the_next_one_begins(first: int, at: str) -> None:
    """Two guards side by side; the file keeps the pages of the lower one.

    Each takes the first free slot, and the handler asks them in that order.  One that
    claims a byte too many would serve the same access without end.
    """
    process = run(
        f"""
PAGE = mmap.PAGESIZE
fd, ours = memory(2 * PAGE)
start = address_of(ours)
guards = [Guard(start + i * PAGE, PAGE) for i in ({first}, {1 - first})]
lower, upper = guards[{first}], guards[{1 - first}]
ours[PAGE - 1] = ours[{at}] = 1
os.ftruncate(fd, PAGE)
{NO_LOOP}
assert (ours[{at}], ours[PAGE - 1]) == (0, 1)
assert (lower.lost, upper.lost) == (False, True)
"""
    )
    assert (process.returncode, process.stderr) == (0, "")


def test_a_range_above_the_memory_limit_is_replaced_page_by_page() -> None:
    """The limit is that of locked memory; root has none, so the program is not root.

    A sanitizer makes mlockall() do nothing, so then there is no limit either.
    """
    process = run(
        """
import ctypes

fd, ours = memory(1 << 40)
guard = Guard(address_of(ours), len(ours))
ours[5 << 30] = 1
libc = ctypes.CDLL(None)
MCL_FUTURE = 2
limit = min(64 << 20, resource.getrlimit(resource.RLIMIT_MEMLOCK)[1] % (1 << 63))
resource.setrlimit(resource.RLIMIT_MEMLOCK, (limit, limit))
if os.geteuid() == 0:
    os.setuid(65534)
assert libc.mlockall(MCL_FUTURE) == 0
os.ftruncate(fd, 0)
assert [ours[(at << 30) + 5] for at in (5, 0, 1000)] == [0, 0, 0]
assert guard.lost
rest = "/memfd:memory" in open("/proc/self/maps").read()
assert rest or "LD_PRELOAD" in os.environ
"""
    )
    assert process.returncode == 0, process.stderr

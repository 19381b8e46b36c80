# SPDX-License-Identifier: Apache-2.0
"""The C thread that passes signals on: what it owes each relay, whatever peers do."""

import errno
import os
import resource
import select
import socket
import threading
import time
from collections.abc import Iterator
from contextlib import ExitStack, suppress

import pytest

from tests.threads import only_thread, processor_time, thread_statuses
from tests.waiting import TIMEOUT, eventually, returns

pytest.importorskip("vhostpci_shared._relay", reason="shared/relay is not built here")

from vhostpci_shared.relay_thread import MAX_RELAYS, RelayThread

NAME = "vhostpci-relay"
FULL = 2**64 - 2
"""The highest value of an eventfd, at which a write waits."""


@pytest.fixture
def thread() -> Iterator[RelayThread]:
    thread = RelayThread()
    yield thread
    assert returns(thread.close), "a process has made the thread wait"


@pytest.fixture
def fds() -> Iterator[ExitStack]:
    """Closes descriptors at the end of a test."""
    with ExitStack() as stack:
        yield stack


def eventfd(fds: ExitStack, *, blocking: bool = False) -> int:
    """Make an eventfd."""
    fd = os.eventfd(0, os.EFD_CLOEXEC | (0 if blocking else os.EFD_NONBLOCK))
    fds.callback(os.close, fd)
    return fd


def pipe(fds: ExitStack) -> tuple[int, int]:
    """Make a pipe whose ends the test may close."""
    ends = os.pipe2(os.O_CLOEXEC)
    for end in ends:
        fds.callback(_close_once, end)
    return ends


def _close_once(fd: int) -> None:
    with suppress(OSError):
        os.close(fd)


def relay(thread: RelayThread, fds: ExitStack) -> tuple[int, int, int]:
    """Relay one eventfd to another; return source, target and the relay's number."""
    source, target = eventfd(fds), eventfd(fds)
    return source, target, thread.add(source, target, target_is_eventfd=True)


def arrives(target: int, timeout: float = TIMEOUT) -> bool:
    """Return whether a signal comes in time, and take it."""
    if not select.select([target], [], [], timeout)[0]:
        return False
    os.read(target, 8)
    return True


def passes_on(thread: RelayThread, fds: ExitStack) -> bool:
    """Whether a new relay of the thread works."""
    source, target, number = relay(thread, fds)
    os.eventfd_write(source, 1)
    found = arrives(target, 20)
    thread.remove(number)
    return found


def test_signal_is_passed_on_and_counted(thread: RelayThread, fds: ExitStack) -> None:
    source, target, number = relay(thread, fds)
    for count in range(1, 4):
        os.eventfd_write(source, 5)
        assert arrives(target)
        assert thread.count(number) == count
    assert thread.remove(number) == (3, 0)


def test_signals_that_came_before_the_relay_are_passed_on(
    thread: RelayThread, fds: ExitStack
) -> None:
    source, target = eventfd(fds), eventfd(fds)
    os.eventfd_write(source, 1)
    thread.add(source, target, target_is_eventfd=True)
    assert arrives(target)


def test_idle_thread_sleeps(thread: RelayThread, fds: ExitStack) -> None:
    for _ in range(100):
        relay(thread, fds)
    before = processor_time(NAME)
    time.sleep(0.3)
    assert processor_time(NAME) - before < 0.1


def test_what_has_come_is_passed_on_before_the_relay_ends(
    thread: RelayThread, fds: ExitStack
) -> None:
    """Its kick may be replaced just after the driver's last one."""
    for _ in range(200):
        source, target, number = relay(thread, fds)
        os.eventfd_write(source, 1)
        assert thread.remove(number) == (1, 0)
        assert os.eventfd_read(target) == 1
        fds.close()


def test_nothing_is_passed_on_after_the_end(
    thread: RelayThread, fds: ExitStack
) -> None:
    source, target, number = relay(thread, fds)
    thread.remove(number)
    os.eventfd_write(source, 1)
    assert passes_on(thread, fds)
    assert not arrives(target, 0)
    assert os.eventfd_read(source) == 1


def test_relay_outlives_the_descriptors_that_it_was_made_of(
    thread: RelayThread, fds: ExitStack
) -> None:
    source, target = eventfd(fds), eventfd(fds)
    theirs = os.dup(source), os.dup(target)
    thread.add(*theirs, target_is_eventfd=True)
    for fd in theirs:
        os.close(fd)
    # Other files get their numbers.
    others = [eventfd(fds) for _ in range(4)]
    os.eventfd_write(source, 1)
    assert arrives(target)
    assert not any(arrives(other, 0) for other in others)


def test_descriptors_of_a_relay_are_closed_with_it(
    thread: RelayThread, fds: ExitStack
) -> None:
    source, target = eventfd(fds), eventfd(fds)
    before = len(os.listdir("/proc/self/fd"))
    number = thread.add(source, target, target_is_eventfd=True)
    assert len(os.listdir("/proc/self/fd")) == before + 2
    thread.remove(number)
    assert len(os.listdir("/proc/self/fd")) == before


def test_number_is_used_again_and_never_means_two_relays(
    thread: RelayThread, fds: ExitStack
) -> None:
    numbers = [relay(thread, fds)[2] for _ in range(600)]
    assert len(set(numbers)) == len(numbers)
    for number in numbers:
        thread.remove(number)
    again = [relay(thread, fds)[2] for _ in range(600)]
    assert set(again) <= set(range(768)), "slots are made although some are free"


@pytest.mark.parametrize("number", [0, 255, 256, MAX_RELAYS, 2**32 - 1])
def test_relay_that_is_not_there_cannot_be_removed(
    thread: RelayThread, fds: ExitStack, number: int
) -> None:
    with pytest.raises(OSError, match="Invalid argument"):
        thread.remove(number)
    assert thread.count(number) == 0


def test_relay_cannot_be_removed_twice(thread: RelayThread, fds: ExitStack) -> None:
    *_, number = relay(thread, fds)
    thread.remove(number)
    with pytest.raises(OSError, match="Invalid argument"):
        thread.remove(number)


def test_source_that_cannot_be_waited_for_is_refused(
    thread: RelayThread, fds: ExitStack
) -> None:
    before = len(os.listdir("/proc/self/fd"))
    with (
        open("/etc/passwd") as file,
        pytest.raises(OSError, match="not permitted"),
    ):
        thread.add(file.fileno(), file.fileno(), target_is_eventfd=False)
    assert len(os.listdir("/proc/self/fd")) == before
    with pytest.raises(OSError, match="Invalid argument"):
        thread.remove(0)
    assert passes_on(thread, fds)


def test_lack_of_descriptors_leaves_nothing_open(
    thread: RelayThread, fds: ExitStack
) -> None:
    source, target = eventfd(fds), eventfd(fds)
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    before = len(os.listdir("/proc/self/fd"))
    limit = max(map(int, os.listdir("/proc/self/fd"))) + 2
    with ExitStack() as fillers:
        # Take all numbers below the limit but the last.
        while (filler := os.dup(source)) < limit - 1:
            fillers.callback(os.close, filler)
        os.close(filler)
        resource.setrlimit(resource.RLIMIT_NOFILE, (limit, hard))
        fillers.callback(resource.setrlimit, resource.RLIMIT_NOFILE, (soft, hard))
        with pytest.raises(OSError, match="Too many open files"):
            thread.add(source, target, target_is_eventfd=True)
    assert len(os.listdir("/proc/self/fd")) == before
    assert passes_on(thread, fds)


# Pipes and sockets in the place of eventfds.


def test_pipe_is_relayed_until_its_other_end_is_closed(
    thread: RelayThread, fds: ExitStack
) -> None:
    read, write = pipe(fds)
    target = eventfd(fds)
    number = thread.add(read, target, target_is_eventfd=True)
    os.write(write, bytes(8))
    assert arrives(target)
    os.close(write)
    time.sleep(0.05)
    before = processor_time(NAME)
    time.sleep(0.3)
    assert processor_time(NAME) - before < 0.1, "it reads the end again and again"
    assert thread.remove(number) == (1, errno.EPIPE)


def test_writing_end_of_a_pipe_is_no_source(
    thread: RelayThread, fds: ExitStack
) -> None:
    """A front-end may send it; its other end is closed, so it is always ready."""
    read, write = pipe(fds)
    number = thread.add(write, eventfd(fds), target_is_eventfd=True)
    os.close(read)
    assert passes_on(thread, fds)
    assert thread.remove(number)[1] in (0, errno.EBADF)


@pytest.mark.parametrize("kind", ["pipe", "socket"])
def test_target_gets_eight_bytes(
    thread: RelayThread, fds: ExitStack, kind: str
) -> None:
    if kind == "pipe":
        theirs, ours = pipe(fds)
    else:
        ends = [fds.enter_context(end) for end in socket.socketpair()]
        theirs, ours = (end.fileno() for end in ends)
    source = eventfd(fds)
    thread.add(source, ours, target_is_eventfd=False)
    os.eventfd_write(source, 1)
    assert select.select([theirs], [], [], TIMEOUT)[0]
    assert os.read(theirs, 100) == (1).to_bytes(8, "little")


def test_abandoned_target_harms_nothing(thread: RelayThread, fds: ExitStack) -> None:
    read, write = pipe(fds)
    source = eventfd(fds)
    number = thread.add(source, write, target_is_eventfd=False)
    os.close(read)
    os.eventfd_write(source, 1)
    assert eventually(lambda: thread.count(number) == 1)
    assert passes_on(thread, fds)


# Peers that are hostile.


@pytest.mark.parametrize("kind", ["eventfd", "pipe", "socket"])
def test_target_that_is_full_and_blocking_holds_nothing_up(
    thread: RelayThread, fds: ExitStack, kind: str
) -> None:
    if kind == "eventfd":
        target = eventfd(fds)
        os.eventfd_write(target, FULL)
    elif kind == "pipe":
        target = pipe(fds)[1]
        fill(target)
    else:
        ours, theirs = map(fds.enter_context, socket.socketpair())
        target = ours.fileno()
        fill(target)
        theirs.setblocking(True)
    source = eventfd(fds)
    number = thread.add(source, target, target_is_eventfd=kind == "eventfd")
    os.set_blocking(target, True)
    os.eventfd_write(source, 1)
    assert eventually(lambda: thread.count(number) == 1)
    assert passes_on(thread, fds)
    os.eventfd_write(source, 1)
    thread.remove(number)


def fill(target: int) -> None:
    """Write until there is no room."""
    os.set_blocking(target, False)
    with suppress(BlockingIOError):
        while True:
            os.write(target, bytes(4096))
    with suppress(BlockingIOError):
        while True:
            os.write(target, bytes(1))


def test_full_target_that_is_made_blocking_all_the_time_holds_nothing_up(
    thread: RelayThread, fds: ExitStack
) -> None:
    """Whatever the thread does about the flag, another process may come in between."""
    source, target = eventfd(fds), eventfd(fds)
    os.eventfd_write(target, FULL)
    number = thread.add(source, target, target_is_eventfd=True)
    end = threading.Event()

    def block() -> None:
        while not end.is_set():
            os.set_blocking(target, True)

    blocking = threading.Thread(target=block)
    blocking.start()
    try:
        for _ in range(500):
            os.eventfd_write(source, 1)
            time.sleep(0.0005)
    finally:
        end.set()
        blocking.join()
    assert passes_on(thread, fds)
    assert thread.remove(number)[0] > 1


def test_blocking_source_that_another_reader_empties_holds_nothing_up(
    thread: RelayThread, fds: ExitStack
) -> None:
    source, target = eventfd(fds, blocking=True), eventfd(fds)
    thread.add(source, target, target_is_eventfd=True)
    for _ in range(3000):
        os.eventfd_write(source, 1)
        # As the thread does it; the one that is late finds it empty.
        with suppress(BlockingIOError):
            os.preadv(source, [bytearray(8)], -1, os.RWF_NOWAIT)
    assert passes_on(thread, fds)


def test_signals_without_end_starve_no_other_relay(
    thread: RelayThread, fds: ExitStack
) -> None:
    """Two relays signal each other, as fast as the thread can."""
    a, b = eventfd(fds), eventfd(fds)
    there = thread.add(a, b, target_is_eventfd=True)
    back = thread.add(b, a, target_is_eventfd=True)
    os.eventfd_write(a, 1)
    assert eventually(lambda: thread.count(back) > 1000)
    for _ in range(20):
        assert passes_on(thread, fds)
    assert thread.remove(there)[0] > 1000
    assert thread.remove(back)[1] == 0


def test_relays_come_and_go_while_signals_come(
    thread: RelayThread, fds: ExitStack
) -> None:
    """ThreadSanitizer looks at this test, in `tox -e tsan`."""
    source, target, _ = relay(thread, fds)
    sources = [eventfd(fds) for _ in range(4)]
    end = threading.Event()

    def signal() -> None:
        while not end.is_set():
            for one in (source, *sources):
                os.eventfd_write(one, 1)

    signalling = threading.Thread(target=signal)
    signalling.start()
    try:
        for turn in range(1000):
            number = thread.add(sources[turn % 4], target, target_is_eventfd=True)
            thread.count(number)
            thread.remove(number)
    finally:
        end.set()
        signalling.join()
    os.eventfd_read(target)
    assert passes_on(thread, fds)


# The process around it.


def test_thread_leaves_signals_to_the_others(
    thread: RelayThread, fds: ExitStack
) -> None:
    assert passes_on(thread, fds), "until it runs, the C library has its mask"
    blocked = int(thread_statuses()[only_thread(NAME)]["SigBlk"], 16)
    open_to = {number for number in range(1, 32) if not blocked >> (number - 1) & 1}
    # SIGILL, SIGBUS, SIGFPE, SIGSEGV; SIGKILL and SIGSTOP cannot be blocked.
    assert open_to == {4, 7, 8, 9, 11, 19}


@pytest.mark.filterwarnings("ignore:.*fork:DeprecationWarning")
def test_child_process_changes_nothing(thread: RelayThread, fds: ExitStack) -> None:
    """It shares the epoll instance with us, and has no thread."""
    source, target, number = relay(thread, fds)
    child = os.fork()
    if not child:
        refused = 0
        for call in (
            lambda: thread.add(source, target, target_is_eventfd=True),
            lambda: thread.remove(number),
            thread.close,
        ):
            try:
                call()
            except ChildProcessError:
                refused += 1
        os._exit(refused)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 3
    os.eventfd_write(source, 1)
    assert arrives(target)
    assert thread.remove(number)[0] == 1


def test_end_of_the_thread_ends_its_relays(fds: ExitStack) -> None:
    before = len(os.listdir("/proc/self/fd"))
    thread = RelayThread()
    source, target, _ = relay(thread, fds)
    os.eventfd_write(source, 1)
    thread.close()
    assert os.eventfd_read(target) == 1, "what had come"
    os.eventfd_write(source, 1)
    assert not arrives(target, 0)
    fds.close()
    assert len(os.listdir("/proc/self/fd")) == before


def test_thread_that_has_ended_is_not_used_any_more(fds: ExitStack) -> None:
    thread = RelayThread()
    *_, number = relay(thread, fds)
    thread.close()
    with pytest.raises(ValueError, match="has ended"):
        thread.count(number)
    with pytest.raises(ValueError, match="has ended"):
        thread.remove(number)
    thread.close()

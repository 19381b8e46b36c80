# SPDX-License-Identifier: Apache-2.0
"""Relays that the event loop works, and those of the C thread."""

import errno
import logging
import os
import sys

import pytest

from tests.fakes.loop import ManualLoop
from vhostpci_host.fds import Fd, Notifier
from vhostpci_host.ivshmem.relays import LoopRelays, ThreadRelays, thread_relays


def test_relay_forwards_until_the_other_end_of_a_pipe_is_closed() -> None:
    loop = ManualLoop()
    read, write = (Notifier.adopt(Fd(fd)) for fd in os.pipe())
    with read, write, Notifier.new() as target:
        relay = LoopRelays(loop).add(read, target)
        write.signal()
        loop.advance()
        assert (relay.count, target.drain()) == (1, True)
        write.close()
        loop.advance()  # the fake loop fails if it were called back again and again
        assert (relay.count, target.drain()) == (1, False)
        relay.close()
    assert loop.watched() == set()


def test_relay_that_is_closed_forwards_what_the_loop_has_not_seen_yet() -> None:
    """Its kick may be replaced just after the driver's last one."""
    loop = ManualLoop()
    with Notifier.new() as kick, Notifier.new() as target:
        relay = LoopRelays(loop).add(kick, target)
        kick.signal()
        relay.close()
        assert (relay.count, target.drain()) == (1, True)


def test_relay_of_a_pipe_whose_other_end_is_closed_can_be_closed() -> None:
    loop = ManualLoop()
    read, write = (Notifier.adopt(Fd(fd)) for fd in os.pipe())
    with read, Notifier.new() as target:
        relay = LoopRelays(loop).add(read, target)
        write.close()
        relay.close()
        assert not target.drain()


# The C thread's, which tests/unit/shared/test_relay_thread.py tests itself.


class FakeThread:
    """A C thread that says of each relay what the test sets."""

    def __init__(self) -> None:
        self.added: list[tuple[int, int, bool]] = []
        self.removed: list[int] = []
        self.counts: dict[int, int] = {}
        self.error = 0
        self.closed = False

    def add(self, source: int, target: int, *, target_is_eventfd: bool) -> int:
        self.added.append((source, target, target_is_eventfd))
        return len(self.added) - 1

    def remove(self, number: int) -> tuple[int, int]:
        self.removed.append(number)
        return self.counts.pop(number, 0) + 1, self.error

    def count(self, number: int) -> int:
        return self.counts.get(number, 0)

    def close(self) -> None:
        self.closed = True


def test_thread_starts_with_the_first_relay_of_all_devices() -> None:
    started: list[FakeThread] = []

    def start() -> FakeThread:
        started.append(FakeThread())
        return started[-1]

    relays = ThreadRelays(start)
    relays.close()
    assert not started
    read, write = (Notifier.adopt(Fd(fd)) for fd in os.pipe())
    with Notifier.new() as kick, read, write:
        relays.add(kick, write)
        relays.add(read, kick)
        (thread,) = started
        assert thread.added == [
            (kick.fileno(), write.fileno(), False),
            (read.fileno(), kick.fileno(), True),
        ]
    relays.close()
    assert thread.closed


def test_count_of_a_relay_that_has_ended_stays(
    caplog: pytest.LogCaptureFixture,
) -> None:
    thread = FakeThread()
    with Notifier.new() as kick:
        relay = ThreadRelays(lambda: thread).add(kick, kick)
    thread.counts[0] = 7
    assert relay.count == 7
    relay.close()
    thread.counts[0] = 1000  # of the next relay of this number
    assert (relay.count, thread.removed) == (8, [0])
    assert not caplog.text


@pytest.mark.parametrize(
    ("error", "said"), [(errno.EPIPE, False), (errno.EIO, True)], ids=["end", "error"]
)
def test_source_that_failed_is_logged(
    caplog: pytest.LogCaptureFixture, error: int, *, said: bool
) -> None:
    thread = FakeThread()
    thread.error = error
    with Notifier.new() as kick:
        ThreadRelays(lambda: thread).add(kick, kick).close()
    assert ("not relayed any more" in caplog.text) is said


def test_daemon_without_the_c_part_says_what_to_do(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setitem(sys.modules, "vhostpci_shared.relay_thread", None)
    with caplog.at_level(logging.WARNING):
        assert thread_relays() is None
    assert "Install a C compiler" in caplog.text


def test_c_thread_is_used_where_it_is_installed() -> None:
    pytest.importorskip("vhostpci_shared._relay", reason="shared/relay is not built")
    relays = thread_relays()
    assert relays is not None
    with Notifier.new() as kick, Notifier.new() as target:
        relay = relays.add(kick, target)
        kick.signal()
        relay.close()
        assert (relay.count, target.drain()) == (1, True)
    relays.close()

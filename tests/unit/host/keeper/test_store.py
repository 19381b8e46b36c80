# SPDX-License-Identifier: Apache-2.0
"""The daemon's side of the keeper: what is kept, under which names, in what order."""

import os
import socket
from collections.abc import Iterator
from contextlib import ExitStack, closing
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.fakes.keeper import FakeKeeper
from vhostpci_host.errors import HostError
from vhostpci_host.fds import Fd, Notifier, identity
from vhostpci_host.keeper import notices
from vhostpci_host.keeper import store as store_module
from vhostpci_host.keeper.shelf import Left, Shelf
from vhostpci_host.keeper.slots import StateError
from vhostpci_host.keeper.store import (
    DescriptorStore,
    Keep,
    from_environment,
    given_count,
)
from vhostpci_shared.limits import raise_descriptor_limit


@pytest.fixture
def keeper() -> Iterator[FakeKeeper]:
    with closing(FakeKeeper()) as keeper:
        yield keeper


@dataclass(frozen=True, slots=True)
class State:
    fds: tuple[str, ...]


class Things:
    """A device whose state names these descriptors."""

    def __init__(self, *fds: Fd) -> None:
        self.fds = list(fds)

    def capture(self, keep: Keep) -> State:
        return State(tuple(keep(fd) for fd in self.fds))


def test_descriptors_are_kept_once_and_forgotten_when_not_named(
    keeper: FakeKeeper,
) -> None:
    with Notifier.new() as one, Notifier.new() as two, one.dup() as again:
        things = Things(one, again)
        with closing(Shelf.new(keeper.store, things.capture)) as shelf:
            shelf.active = True
            assert keeper.take() == ["+s1"]
            shelf.save()
            assert keeper.take() == ["+d2"]
            shelf.save()
            assert keeper.take() == []
            things.fds = [two]
            shelf.save()
            assert keeper.take() == ["+d3", "-d2"]
            things.fds = [again, two]
            shelf.save()
            assert keeper.take() == ["+d4"]
        assert set(keeper.take()) == {"-d4", "-d3", "-s1"}
    assert not keeper.kept


def test_descriptor_that_two_devices_have_stays_until_both_are_gone(
    keeper: FakeKeeper,
) -> None:
    with Notifier.new() as one, one.dup() as again:
        first = Shelf.new(keeper.store, Things(one).capture)
        second = Shelf.new(keeper.store, Things(again).capture)
        for shelf in (first, second):
            shelf.active = True
            shelf.save()
        assert keeper.take() == ["+s1", "+s2", "+d3"]
        first.close()
        assert keeper.take() == ["-s1"]
        second.close()
        assert set(keeper.take()) == {"-d3", "-s2"}


def test_both_ends_of_a_pipe_are_kept(keeper: FakeKeeper) -> None:
    read, write = map(Fd, os.pipe())
    with read, write:
        assert keeper.store.hold(read) != keeper.store.hold(write)


def test_successor_goes_on_with_the_names_of_its_predecessor(
    keeper: FakeKeeper,
) -> None:
    with Notifier.new() as one, Notifier.new() as two:
        name = keeper.store.hold(one)
        left = {name: one.copy(), "Other": two.copy()}
        successor = DescriptorStore(keeper.ours.dup(), left)
        with closing(successor), one.dup() as ours:
            assert successor.hold(ours) == name
            assert successor.hold(two) == "d2"
            with Notifier.new() as three:
                assert successor.hold(three) == "d3"


def test_what_has_no_name_of_ours_is_given_and_not_kept(keeper: FakeKeeper) -> None:
    """systemd's sockets have their unit's name, and all of one unit the same."""
    with Notifier.new() as one, Notifier.new() as two:
        names = ("a@b.socket/0", "a@b.socket/1")
        left = {name: fd.copy() for name, fd in zip(names, (one, two), strict=True)}
        successor = DescriptorStore(keeper.ours.dup(), left)
        with closing(successor):
            given = successor.take()
            assert list(map(identity, given)) == [identity(one), identity(two)]
            assert not successor.take()
            assert not successor.left
            for fd in given:
                fd.close()


def test_what_no_device_takes_is_forgotten_at_the_end_of_the_start(
    keeper: FakeKeeper,
) -> None:
    with Notifier.new() as one:
        keeper.store.hold(one)
        keeper.take()
        (kept,) = keeper.kept.items()
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        theirs.setblocking(False)
        with ours, closing(DescriptorStore(theirs, {kept[0]: kept[1].copy()})) as store:
            ours.close()  # so that it waits for no answer
            store.finish_start()
            assert not store.left
            assert "keeper is gone" in store.problem


def test_start_is_finished_although_many_descriptors_are_open(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The pipe by which it waits has a number above 1023 then."""
    monkeypatch.setattr(store_module, "PATIENCE", 0.05)  # the keeper does not answer
    raise_descriptor_limit()
    with ExitStack() as stack, Notifier.new() as one:
        while stack.enter_context(one.dup()).fileno() < 1024:
            pass
        left = {"d1": stack.enter_context(one.dup())}
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        theirs.setblocking(False)
        with ours, closing(DescriptorStore(theirs, left)) as store:
            store.finish_start()
            assert not store.problem
            assert ours.recv(100) == notices.forget("d1").encode()


def test_keeper_that_ends_is_noticed(keeper: FakeKeeper) -> None:
    keeper.store.check()
    assert not keeper.store.problem
    keeper.ours.close()
    keeper.store.check()
    assert "it has ended" in keeper.store.problem


def test_keeper_that_is_killed_before_it_has_taken_a_notice_is_noticed(
    keeper: FakeKeeper,
) -> None:
    """Linux reports that as an error, and not as an end."""
    keeper.store.say_alive()
    keeper.ours.close()
    keeper.store.check()
    assert "it has ended" in keeper.store.problem


def test_all_that_a_keeper_has_said_before_its_end_is_read(keeper: FakeKeeper) -> None:
    for _ in range(2):
        keeper.ours.send(notices.NO_HEIR)
    keeper.ours.close()
    keeper.store.check()
    assert keeper.store.failed_heirs == 2
    assert "it has ended" in keeper.store.problem


def test_keeper_that_is_stopped_finds_what_was_kept_meanwhile(
    keeper: FakeKeeper,
) -> None:
    """Its socket is not full of words that say no more than that the daemon lives."""
    for _ in range(10_000):
        keeper.store.say_alive()
    with Notifier.new() as one:
        name = keeper.store.hold(one)
    assert not keeper.store.problem
    assert keeper.take() == [f"+{name}"]


def test_keeper_that_takes_nothing_is_given_up(
    keeper: FakeKeeper, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It sees the end of its socket: what it has is out of date."""
    monkeypatch.setattr(store_module, "PATIENCE", 0.05)
    while not keeper.store.problem:
        keeper.store.say(notices.ALIVE)
    keeper.store.say_alive()
    keeper.store.check()
    keeper.take()
    assert keeper.ours.recv(1) == b""


def test_left_descriptors_are_checked_for_their_kind() -> None:
    ours, theirs = socket.socketpair()
    with (
        ours,
        theirs,
        Notifier.new() as eventfd,
        Fd(os.memfd_create("file")) as file,
    ):
        left = Left({"e": eventfd, "f": file, "s": Fd(ours.detach())})
        left.eventfd("e").close()
        left.socket("s", listening=False).close()
        for wrong in ("f", "s", "missing"):
            with pytest.raises(StateError):
                left.eventfd(wrong)
        for wrong in ("e", "f", "missing"):
            with pytest.raises(StateError):
                left.socket(wrong, listening=False)
        with pytest.raises(StateError):
            left.socket("s", listening=True)
        left._descriptors["s"].close()


def test_process_without_a_keeper_has_no_store(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in (notices.CHANNEL, "NOTIFY_SOCKET", "FDSTORE"):
        monkeypatch.delenv(name, raising=False)
    assert from_environment(systemd=True) is None
    monkeypatch.setenv("NOTIFY_SOCKET", "/run/none")
    assert from_environment(systemd=False) is None
    monkeypatch.setenv("FDSTORE", "0")
    assert from_environment(systemd=False) is None


def test_service_manager_that_does_not_listen_is_reported(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("NOTIFY_SOCKET", str(tmp_path / "none"))
    monkeypatch.delenv(notices.CHANNEL, raising=False)
    with pytest.raises(HostError, match="cannot reach the service manager"):
        from_environment(systemd=True)


@pytest.mark.parametrize(
    ("pid", "count", "found"),
    [("", "2", 2), ("1", "2", 0), ("", "-1", 0), ("", "x", 0), ("", "", 0)],
)
def test_given_descriptors_are_counted_if_they_are_ours(
    monkeypatch: pytest.MonkeyPatch, pid: str, count: str, found: int
) -> None:
    monkeypatch.setenv("LISTEN_PID", pid or str(os.getpid()))
    monkeypatch.setenv("LISTEN_FDS", count)
    assert given_count() == found


def test_heir_ends_with_its_keeper(monkeypatch: pytest.MonkeyPatch) -> None:
    """Without a word: the daemon serves, and has said that its keeper is gone."""
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    with ours, theirs:
        monkeypatch.setenv(notices.CHANNEL, str(os.dup(theirs.fileno())))
        monkeypatch.setenv(notices.HEIR, "1")
        ours.shutdown(socket.SHUT_WR)
        with pytest.raises(SystemExit) as end:
            from_environment(systemd=False)
        assert end.value.code == 0
        assert notices.receive(ours)[0].decode() == notices.WAITS


def test_open_file_that_was_left_under_two_names_is_forgotten_twice() -> None:
    with Notifier.new() as one:
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        ours.setblocking(False)
        left = {"d1": one.dup(), "d2": one.dup()}
        with ours, closing(DescriptorStore(theirs, left)) as store:
            theirs.setblocking(False)
            store.finish_start()
            assert not store.problem
            assert ours.recv(100) == notices.forget("d1").encode()
            assert ours.recv(100) == notices.forget("d2").encode()

# SPDX-License-Identifier: Apache-2.0
"""What is left to daemons that end again and again, under systemd."""

import os
from collections.abc import Iterator
from contextlib import closing, contextmanager

import pytest

from tests.fakes.keeper import FakeKeeper
from vhostpci_host.fds import Fd, Notifier
from vhostpci_host.keeper import store as store_module
from vhostpci_host.keeper.attempts import Attempts
from vhostpci_host.keeper.notices import USELESS
from vhostpci_host.keeper.store import ATTEMPTS


@pytest.fixture
def keeper(monkeypatch: pytest.MonkeyPatch) -> Iterator[FakeKeeper]:
    # It takes nothing while the store waits for that.
    monkeypatch.setattr(store_module, "PATIENCE", 0.01)
    with closing(FakeKeeper()) as keeper:
        keeper.store.close()
        yield keeper


@contextmanager
def attempt(keeper: FakeKeeper) -> Iterator[Attempts]:
    """Be the next daemon, which finds what the one before has left."""
    with closing(keeper.replace_store()), closing(Attempts(keeper.store)) as attempts:
        yield attempts
        keeper.take()


@pytest.fixture
def name(keeper: FakeKeeper) -> str:
    """The name of a descriptor that a daemon that was ready has left."""
    with attempt(keeper) as first, Notifier.new() as one:
        first.ready()
        return keeper.store.hold(one)


def test_what_ends_each_successor_is_left_to_no_third_one(
    keeper: FakeKeeper, name: str, caplog: pytest.LogCaptureFixture
) -> None:
    for _ in range(USELESS):
        with attempt(keeper):
            assert set(keeper.store.left) == {f"{ATTEMPTS}1", name}
    with attempt(keeper) as last:
        assert not keeper.store.left
        last.ready()
    assert set(keeper.kept) == {f"{ATTEMPTS}3"}
    assert "2 daemons have ended before they were ready" in caplog.text


def test_daemon_that_was_ready_counts_for_nothing(
    keeper: FakeKeeper, name: str
) -> None:
    for _ in range(USELESS + 1):
        with attempt(keeper) as attempts:
            attempts.ready()
            assert name in keeper.store.left


def test_end_for_another_reason_counts_for_nothing(
    keeper: FakeKeeper, name: str
) -> None:
    for _ in range(USELESS + 1):
        with attempt(keeper) as attempts:
            attempts.explained()
            assert name in keeper.store.left


def test_count_that_is_no_file_or_empty_is_none(keeper: FakeKeeper) -> None:
    for left in (Fd(os.memfd_create("empty")), Notifier.new()):
        keeper.kept[f"{ATTEMPTS}1"] = left
        with attempt(keeper):
            assert f"{ATTEMPTS}1" in keeper.store.left
        keeper.kept.popitem()[1].close()

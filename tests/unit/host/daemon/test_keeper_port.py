# SPDX-License-Identifier: Apache-2.0
"""`restart` signals the keeper, and no process that is our parent in its place."""

import asyncio
import os
import signal
from collections.abc import Iterator
from contextlib import closing

import pytest

from tests.fakes.keeper import FakeKeeper
from vhostpci_host.daemon.keeper_port import KeeperPort
from vhostpci_host.errors import HostError
from vhostpci_host.keeper import notices


class Signalled:
    """The signals that were sent; the keeper answers each as if no heir starts."""

    def __init__(self, keeper: FakeKeeper) -> None:
        self.sent: list[tuple[int, int]] = []
        self._keeper = keeper

    def kill(self, pid: int, number: int) -> None:
        self.sent.append((pid, number))
        self._keeper.ours.send(notices.NO_HEIR)
        self._keeper.store.check()


@pytest.fixture
def keeper() -> Iterator[FakeKeeper]:
    with closing(FakeKeeper()) as keeper:
        yield keeper


@pytest.fixture
def port(keeper: FakeKeeper) -> Iterator[KeeperPort]:
    with closing(KeeperPort(keeper.store)) as port:
        yield port


@pytest.fixture
def signalled(keeper: FakeKeeper, monkeypatch: pytest.MonkeyPatch) -> Signalled:
    found = Signalled(keeper)
    monkeypatch.setattr(os, "kill", found.kill)
    return found


def restart(port: KeeperPort) -> HostError:
    """Ask for a successor; return why there is none."""
    with pytest.raises(HostError) as error:
        asyncio.run(port.restart({}))
    return error.value


def test_keeper_is_asked_for_a_successor(
    port: KeeperPort, signalled: Signalled
) -> None:
    assert "the successor does not start" in str(restart(port))
    assert signalled.sent == [(os.getppid(), signal.SIGUSR2)]


@pytest.mark.parametrize("unread", [False, True])
def test_keeper_that_has_just_ended_is_not_asked(
    keeper: FakeKeeper, port: KeeperPort, signalled: Signalled, unread: bool
) -> None:
    if unread:
        keeper.store.say_alive()
    keeper.ours.close()
    assert "it has ended" in str(restart(port))
    assert not signalled.sent


def test_process_that_has_become_our_parent_is_not_asked(
    port: KeeperPort, signalled: Signalled, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An heir that starts just then has the other end for a moment."""
    monkeypatch.setattr(os, "getppid", lambda: 1)
    assert "it has just ended" in str(restart(port))
    assert not signalled.sent

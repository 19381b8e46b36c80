# SPDX-License-Identifier: Apache-2.0
"""What all tests of the command line start with."""

import signal
from collections.abc import Iterator
from contextlib import contextmanager

import pytest

from vhostpci_guest.cli import separation
from vhostpci_guest.cli.config_orders import ConfigOrders
from vhostpci_guest.config.settings import Settings
from vhostpci_guest.dataplane.vhost_user.sockets import LocalSockets
from vhostpci_guest.privileges.user import User
from vhostpci_guest.tap import settings
from vhostpci_guest.tap.requests import LocalRequests

ENDS = (signal.SIGTERM, signal.SIGINT)


@pytest.fixture(autouse=True)
def signals() -> Iterator[None]:
    """Undo that `run` blocks the signals that end it: the next test needs them."""
    before = signal.pthread_sigmask(signal.SIG_BLOCK, ())
    yield
    # One that came when `run` had ended already would end the tests now.
    while signal.sigtimedwait(ENDS, 0) is not None:
        pass
    signal.pthread_sigmask(signal.SIG_SETMASK, before)


@pytest.fixture(autouse=True)
def whole(monkeypatch: pytest.MonkeyPatch) -> None:
    """Leave the process of the tests its privileges: it has more tests to run."""

    @contextmanager
    def helpers(
        _pci: bool, _config: ConfigOrders, sockets: LocalSockets | None
    ) -> Iterator[separation.Helpers]:
        yield separation.Helpers(LocalRequests(), None, None, sockets)

    def choose_user(_settings: Settings) -> User | None:
        return None

    def give_up(_user: User | None, *, asked: bool) -> None:
        pass

    # What `run` reads of the machine is put back as well.
    monkeypatch.setattr(settings, "_remembered", [])
    monkeypatch.setattr(separation, "helpers", helpers)
    monkeypatch.setattr(separation, "choose_user", choose_user)
    monkeypatch.setattr(separation, "give_up", give_up)

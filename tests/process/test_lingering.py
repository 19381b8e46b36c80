# SPDX-License-Identifier: Apache-2.0
"""Slaves' QEMUs that stay connected to devices that are gone, many at one time."""

import contextlib
import select
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.fakes.slave_client import SlaveClient
from tests.process.fleet import Fleet
from tests.waiting import PROCESS_TIMEOUT, wait_for
from vhostpci_host.daemon.control_client import ask
from vhostpci_host.ivshmem.linger import MOST
from vhostpci_shared.wire import ProtocolError

DEVICES = MOST + 6


@pytest.fixture
def fleet() -> Iterator[Fleet]:
    """A daemon with the device a."""
    with (
        tempfile.TemporaryDirectory(prefix="vhp-", dir="/dev/shm") as name,
        Fleet(Path(name), ["a"]) as fleet,
    ):
        yield fleet


def come_and_go(fleet: Fleet, clients: contextlib.ExitStack) -> None:
    """Add a device, connect its slave's QEMU, and remove the device."""
    control = fleet.run_dir / "control"
    add = {"command": "add", "name": "c", "options": {"memory": "16M"}}
    ask(control, add, PROCESS_TIMEOUT)
    client = SlaveClient(fleet.run_dir / "c.ivshmem")
    clients.callback(client.close)
    client.handshake()
    ask(control, {"command": "remove", "name": "c"}, PROCESS_TIMEOUT)


def test_slave_that_is_refused_stays_connected_after_many_devices_have_gone(
    fleet: Fleet,
) -> None:
    """It must be able to read why, however late.

    A QEMU would read without end from a connection that is closed at once.
    """
    first = fleet.slave("a")
    before = fleet.descriptors()
    with contextlib.ExitStack() as clients:
        for _ in range(DEVICES):
            come_and_go(fleet, clients)
        # Not equal: before, a copy that was just sent may not have been closed yet.
        wait_for(lambda: fleet.descriptors() <= before + MOST, fleet.open_files)
        refused = SlaveClient(fleet.run_dir / "a.ivshmem")
        clients.callback(refused.close)
        with pytest.raises(ProtocolError, match="another slave"):
            refused.read()
        assert not readable(refused), "the daemon has hung up on it"
    assert not readable(first)
    wait_for(lambda: fleet.descriptors() <= before, fleet.open_files)


def readable(client: SlaveClient) -> bool:
    """Whether something, or the end of the connection, comes within half a second."""
    return bool(select.select([client.socket], [], [], 0.5)[0])

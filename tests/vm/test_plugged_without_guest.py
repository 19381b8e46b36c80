# SPDX-License-Identifier: Apache-2.0
"""A real daemon plugs a master's memory into a real QEMU, whose guest is firmware.

Master ──vhost-user── vhostpci-host ──QMP, ivshmem── QEMU: SeaBIOS, 3 root ports
(threads of the test)                                  └──QMP── test
"""

import os
import signal
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from tests.assumptions.test_qmp import started
from tests.fakes.netns import private_network
from tests.process.lab import ATTACH, Lab
from tests.process.master import Ram
from tests.vm.qmp import Qmp
from tests.waiting import wait_for, when_listening
from vhostpci_host.errors import HostError

pytestmark = pytest.mark.vm

MIB = 2**20
ROOT_PORTS = [
    word
    for number in (1, 2, 3)
    for word in (
        "-device",
        f"pcie-root-port,id=p{number},chassis={number},slot={number},pref64-reserve=64M",
    )
]


class Slave:
    """A QEMU whose guest is only its firmware.

    Its monitor stays connected: without KVM a new descriptor, between the end of a
    device and the workaround for what that leaves, would end QEMU (tcg_eventfds.py).
    """

    def __init__(self, monitor: Qmp) -> None:
        self._monitor = monitor

    def sizes(self) -> list[int]:
        """Return the sizes of BAR 2 of the devices behind the root ports."""
        (bus,) = self._monitor.execute("query-pci", {})
        return sorted(
            region["size"]
            for root_port in bus["devices"]
            for device in root_port.get("pci_bridge", {}).get("devices", [])
            for region in device["regions"]
            if region["bar"] == 2
        )

    def wait_sizes(self, *sizes: int) -> None:
        """Wait until the devices behind the root ports have these sizes.

        After a reset QEMU shows none until the firmware has found the root ports again.
        """
        wait_for(lambda: self.sizes() == [*sizes], lambda: f"{sizes}: {self.sizes()}")

    def release_asked(self) -> None:
        """Release the devices whose unplug was asked for.

        A guest without a driver for root ports does so only when it is reset.
        """
        self._monitor.execute("system_reset", {})
        time.sleep(0.5)

    def has_released_all(self) -> bool:
        """Release what was asked for; return whether no device is left."""
        self.release_asked()
        return self.sizes() == []


@contextmanager
def running(directory: Path) -> Iterator[Slave]:
    (directory / "test").unlink(missing_ok=True)
    with (
        started(directory, *ROOT_PORTS),
        when_listening(lambda: Qmp(directory / "test")) as monitor,
    ):
        yield Slave(monitor)


@pytest.fixture
def lab(tmp_path: Path) -> Iterator[Lab]:
    with private_network(), Lab(tmp_path) as lab:
        yield lab


def plugged(lab: Lab) -> int:
    return len(lab.status()["plugging"]["plugged"])


def test_masters_memory_is_plugged_when_it_comes_and_unplugged_when_it_goes(
    lab: Lab, tmp_path: Path
) -> None:
    with running(tmp_path) as slave:
        daemon = lab.start_daemon(*ATTACH, "--slave-qmp", str(tmp_path / "ours"))
        master = lab.start_master(Ram.of_nodes(16 * MIB, 32 * MIB))
        master.load()
        wait_for(lambda: plugged(lab) == 3, "window 0 and two memories are plugged")
        slave.wait_sizes(64 * 1024, 16 * MIB, 32 * MIB)
        master.close()
        wait_for(lambda: plugged(lab) == 0, "no window is wanted any more")
        wait_for(slave.has_released_all, "the root ports are free")
        assert "Traceback" not in daemon.log
        assert daemon.end() == 0


def test_slave_that_is_replaced_gets_all_again(lab: Lab, tmp_path: Path) -> None:
    lab.start_daemon(*ATTACH, "--slave-qmp", str(tmp_path / "ours"))
    lab.start_master(Ram.of_nodes(16 * MIB)).load()
    for _ in range(2):
        with running(tmp_path):
            wait_for(lambda: plugged(lab) == 2, "window 0 and the memory are plugged")
        wait_for(lambda: plugged(lab) == 0, "it is gone")


def test_killed_daemons_windows_are_unplugged_by_its_successor(
    lab: Lab, tmp_path: Path
) -> None:
    options = (*ATTACH, "--slave-qmp", str(tmp_path / "ours"))
    with running(tmp_path) as slave:
        daemon = lab.start_daemon(*options)
        master = lab.start_master(Ram.of_nodes(16 * MIB))
        master.load()
        wait_for(lambda: plugged(lab) == 2, "window 0 and the memory are plugged")
        daemon.end(signal.SIGKILL)
        lab.start_daemon(*options)
        master.reconnect()
        master.load()
        time.sleep(1)
        assert plugged(lab) < 2

        def plugged_again() -> bool:
            if plugged(lab) < 2:
                slave.release_asked()
            return plugged(lab) == 2

        wait_for(plugged_again, "both windows are plugged again")
        slave.wait_sizes(64 * 1024, 16 * MIB)


def test_windows_stay_plugged_when_a_daemon_with_a_keeper_is_killed(
    lab: Lab, tmp_path: Path
) -> None:
    """The guest is asked to release nothing."""

    def replaced() -> bool:
        try:
            return bool(lab.status()["daemon"]["pid"] != before)
        except HostError:
            return False  # the daemon that was killed had accepted our connection

    options = (*ATTACH, "--slave-qmp", str(tmp_path / "ours"), "--keeper", "auto")
    with running(tmp_path) as slave:
        lab.start_daemon(*options)
        master = lab.start_master(Ram.of_nodes(16 * MIB))
        master.load()
        wait_for(lambda: plugged(lab) == 2, "window 0 and the memory are plugged")
        before = lab.status()["daemon"]["pid"]
        os.kill(before, signal.SIGKILL)
        wait_for(replaced, "a successor")
        wait_for(lambda: lab.status()["plugging"]["connected"], "it asks the VM")
        assert plugged(lab) == 2
        slave.wait_sizes(64 * 1024, 16 * MIB)
        log = lab.daemon.log
        assert log.count("is plugged into the slave VM") == 2
        assert "is unplugged" not in log
        assert not slave.has_released_all()
        master.close()

        def gone() -> bool:
            slave.release_asked()
            return plugged(lab) == 0

        wait_for(gone, "all are unplugged")
        assert lab.daemon.end() == 0

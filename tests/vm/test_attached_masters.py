# SPDX-License-Identifier: Apache-2.0
"""Masters that bring their own memory, and a slave that is a process.

  master            vhostpci-host            namespace
virtio-net ------ vhost-user, windows ------ vhostpci-guest --socket -- TAP
memfd, file, NUMA, DIMM                      10.77.0.2
"""

import signal
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from tests.vm import image, memory, process, traffic
from tests.vm.daemon import Daemon
from tests.vm.pair import MASTER_ADDRESS, SLAVE_ADDRESS, Master
from tests.vm.process import Process

pytestmark = pytest.mark.vm

MIB = 2**20
GIB = 2**30
PATTERN = "7668c0de"
"""The payload of pings, which a test then looks for in the master's memory."""


class Link:
    """A master and a slave process with packets crossing."""

    def __init__(self, daemon: Daemon, master: Master, slave: Process) -> None:
        self.daemon, self.master, self.slave = daemon, master, slave

    def ping_both_ways(self, options: str = "") -> traffic.Ping:
        return traffic.ping(self.master, SLAVE_ADDRESS, options=options) + traffic.ping(
            self.slave, MASTER_ADDRESS, options=options
        )

    def windows(self) -> list[int]:
        """Return the sizes of the windows that the slave has."""
        windows = self.daemon.status()["windows"]
        return sorted(one["size"] for one in windows if one["connected"])

    def regions(self) -> list[tuple[int, int]]:
        """Return the guest address and the size of each region."""
        regions = self.daemon.status()["master"]["regions"]
        return sorted((one["guest_addr"], one["size"]) for one in regions)


@contextmanager
def linked(
    logs: Path,
    args: list[str],
    chipset: str = "q35",
    cpus: int = 1,
    *,
    connect: Path | None = None,
    card: tuple[str, ...] = (),
) -> Iterator[Link]:
    """Boot a master with this memory and options of its card, and run the agent."""
    with Daemon("attached", logs=logs, connect=connect) as daemon:
        master = Master(
            *("master", image.build()),
            logs=logs,
            args=[*daemon.card(*card), *args],
            chipset=chipset,
            cpus=cpus,
        )
        with master, process.serving(daemon, logs / "agent.log") as slave:
            master.wait_ready()
            master.configure()
            daemon.wait_state("running")
            slave.wait_tap()
            master.wait_for(f"ping -n -q -c 1 -W 1 {SLAVE_ADDRESS}")
            yield Link(daemon, master, slave)


@pytest.mark.parametrize(
    ("chipset", "below"), [("q35", 2 * GIB), ("pc", 3 * GIB)], ids=["q35", "i440fx"]
)
def test_4_gib_around_the_pci_hole(here: Path, chipset: str, below: int) -> None:
    """One window has two regions: the memory below the hole and that above it."""
    with linked(here, memory.memfd("4G"), chipset) as link:
        ping = link.ping_both_ways()
        assert ping.received == ping.sent
        assert link.windows() == [4 * GIB]
        assert (4 * GIB, 4 * GIB - below) in link.regions()


def test_master_that_listens_is_connected_to_by_the_next_daemon(
    here: Path, tmp_path: Path
) -> None:
    """QEMU's server=on, with which QEMU does not connect again by itself.

    Its rings are packed: the agent knows where they stand, and QEMU does not.
    """
    ram, socket = memory.memfd("256M"), tmp_path / "front-end"
    with linked(here, ram, connect=socket, card=("--packed",)) as link:
        for number in (signal.SIGKILL, signal.SIGTERM):
            link.daemon.restart(number)
            link.daemon.wait_state("running")
            link.master.wait_for(f"ping -n -q -c 1 -W 1 {SLAVE_ADDRESS}")
            ping = link.ping_both_ways()
            assert ping.received == ping.sent
        rings = link.daemon.status()["rings"]
        assert {ring["format"] for ring in rings} == {"packed"}


def test_two_numa_nodes(here: Path) -> None:
    with linked(here, memory.two_nodes("256M", "512M"), cpus=2) as link:
        assert link.windows() == [256 * MIB, 256 * MIB]
        for cpu, node in enumerate(memory.files(link.master, 256 * MIB)):
            pattern = f"{PATTERN}{cpu:02x}"
            link.master.run(
                f"taskset -c {cpu} /usr/bin/ping -c 3 -i 0.2 -p {pattern} "
                f"{SLAVE_ADDRESS}"
            )
            assert memory.holds(node, bytes.fromhex(pattern) * 2)


def test_master_whose_rings_are_private_is_told_of_and_does_not_come_again(
    here: Path,
) -> None:
    """It is neither dropped, after which it would come back each second, nor served."""
    ram = memory.half_shared("256M", "512M")
    with Daemon("private", logs=here) as daemon:
        args = [*daemon.card(), *ram]
        with Master("master", image.build(), logs=here, args=args) as master:
            master.wait_ready()
            daemon.wait_state("master's rings cannot be served")
            time.sleep(5)
            log = daemon.log.read_text()
    assert "memory regions: if a part of the master's memory is not shared" in log
    assert log.count("front-end connected") == 1
    assert log.count("front-end disconnected") <= 1  # at the end of its VM
    assert "dropped" not in log


@pytest.fixture
def tmpfs() -> Iterator[Path]:
    """Return a directory for memory files: the daemon takes none of a disk's."""
    with tempfile.TemporaryDirectory(dir="/dev/shm") as directory:
        yield Path(directory)


def test_file_whose_size_is_no_power_of_two_and_a_dimm_beside_it(
    here: Path, tmpfs: Path
) -> None:
    """The DIMM comes while packets flow: none is lost, and later ones lie in it."""
    ram = memory.with_slots(memory.file("448M", tmpfs / "ram"))
    with linked(here, ram) as link:
        ping = link.ping_both_ways()
        assert ping.received == ping.sent
        assert link.windows() == [448 * MIB]
        with traffic.pinging(link.master, SLAVE_ADDRESS) as running:
            memory.plug_dimm(link.master, 256 * MIB)
            link.daemon.wait_state("running")
            running.wait_answers(11)  # the DIMM is in use now
            during = link.ping_both_ways()
        ping = running.result() + during
        evidence = f"{running.output()}\n{link.slave.output()}\n{link.daemon.status()}"
        assert ping.received == ping.sent, evidence
        assert link.windows() == [256 * MIB, 448 * MIB]
        (dimm,) = memory.files(link.master, 256 * MIB)
        link.ping_both_ways(f"-p {PATTERN}")
        assert memory.holds(dimm, bytes.fromhex(PATTERN) * 2)

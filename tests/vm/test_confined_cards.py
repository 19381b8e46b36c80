# SPDX-License-Identifier: Apache-2.0
"""A confined master with a second card of vhost-user.

  master                        two daemons                  two slaves, processes
private memory
shared region -- QEMU sends it to both -- first: confined -- window: the region
                                         second: whatever -- window: refused, or as well
"""

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.vm import confined, image, process, traffic
from tests.vm.confined import MIB, ConfinedMaster, Link
from tests.vm.daemon import Daemon, DaemonError
from tests.vm.pair import MASTER_ADDRESS, SLAVE_ADDRESS
from tests.vm.process import Process
from tests.vm.test_confined import PATTERN
from tests.vm.test_confined_limits import REFUSED

pytestmark = [pytest.mark.vm, pytest.mark.long]

POOL = f"{confined.POOL // MIB}M"
EXAMPLE = ("--mode", "attach", "--memory", "2G", "--confined", POOL)
"""What `qemu-args` needs to know of a master that brings its own memory."""


@dataclass(frozen=True, slots=True)
class Kind:
    """A kind of device."""

    memory: str | None = None
    """The size of the memory that its daemon makes."""
    confined: str | None = None
    """The size of its bounce pool."""

    def daemon(self, name: str, logs: Path) -> Daemon:
        """Return the daemon of such a device."""
        return Daemon(name, logs=logs, memory=self.memory, confined=self.confined)


ARENA = Kind(f"{confined.MEMORY // MIB}M", POOL)
ATTACHED, ORDINARY = Kind(confined=POOL), Kind()


@dataclass(frozen=True, slots=True)
class Cards:
    """A confined master, whose first card has its address, and both of its devices."""

    first: Link
    second: Daemon
    second_slave: Process

    def ping_first(self) -> traffic.Ping:
        """Ping both ways, with packets that can be found."""
        options = f"-p {PATTERN}"
        pings = traffic.ping(self.first.master, SLAVE_ADDRESS, options=options)
        return pings + traffic.ping(self.first.slave, MASTER_ADDRESS, options=options)

    def answers_of_second(self) -> int:
        """Return how many of three echoes are answered through the second card."""
        in_namespace = "ip netns exec second"
        self.first.master.run(
            "ip netns add second && ip link set eth1 netns second && "
            f"{in_namespace} ip addr add {MASTER_ADDRESS}/24 dev eth1 && "
            f"{in_namespace} ip link set eth1 up"
        )
        self.second_slave.wait_tap()
        ping = f"{in_namespace} ping -n -c 3 -W 5 {SLAVE_ADDRESS}"
        said = self.first.master.run(ping, timeout=60, check=False).stdout
        return said.count("bytes from")

    def packets_of_first_in_second(self) -> int:
        """Return how often packets of the first are in what the second's slave has."""
        maps = Path(f"/proc/{self.second_slave.pid}/map_files")
        size = self.first.daemon.status()["master"]["regions"][0]["size"]
        found = 0
        for file in maps.iterdir():
            if file.stat().st_size >= size:
                text = bytes.fromhex(PATTERN) * 4
                found += confined.search(file, {"ping": text}).times["ping"]
        return found


@contextmanager
def up(logs: Path, first: Kind, second: Kind) -> Iterator[Cards]:
    """The master with the memory of its first device, and the cards of both."""
    with ExitStack() as stack:
        enter = stack.enter_context
        one = enter(first.daemon("first", logs))
        two = enter(second.daemon("second", logs))
        example = () if first.memory else EXAMPLE
        words = one.kernel_words(*example)
        master = ConfinedMaster(
            *("master", image.build((), confined.KERNEL)),
            logs=logs,
            args=[
                *one.qemu_args("master", *example),
                *two.card(*(("--confined", POOL) if second.confined else ())),
                *("-append", confined.command_line(words)),
            ],
        )
        enter(master)
        slaves = [
            enter(process.serving(daemon, logs / f"{daemon.name}.agent.log"))
            for daemon in (one, two)
        ]
        master.wait_ready()
        link = Link(one, master, slaves[0])
        confined.wait_packets(link)
        yield Cards(link, two, slaves[1])


def test_second_arena_of_a_master_is_refused(here: Path) -> None:
    with up(here, ARENA, ARENA) as cards:
        assert cards.answers_of_second() == 0
        assert cards.second.status()["state"] == REFUSED
        assert "one confined device with an arena" in cards.second.output()
        pings = cards.ping_first()
        assert pings.received == pings.sent >= 20
        assert cards.packets_of_first_in_second() == 0


def test_ordinary_card_has_no_traffic_and_its_slave_has_the_region(here: Path) -> None:
    """Its rings are in private memory, and QEMU shows its daemon the region."""
    with up(here, ARENA, ORDINARY) as cards:
        assert cards.answers_of_second() == 0
        assert cards.second.status()["state"] == "master's rings cannot be served"
        pings = cards.ping_first()
        assert pings.received == pings.sent >= 20
        assert cards.packets_of_first_in_second() > 0
        with pytest.raises(DaemonError, match="virtio-net-pci, whose back-end is an"):
            cards.first.daemon.doctor()


def test_two_cards_share_a_region_that_the_master_brings(here: Path) -> None:
    """Packets cross on both, and each slave has those of the other."""
    with up(here, ATTACHED, ATTACHED) as cards:
        assert cards.answers_of_second() == 3
        pings = cards.ping_first()
        assert pings.received == pings.sent >= 20
        assert cards.packets_of_first_in_second() > 0
        with pytest.raises(DaemonError, match="virtio-net-pci, whose back-end is an"):
            cards.first.daemon.doctor()

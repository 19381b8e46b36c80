# SPDX-License-Identifier: Apache-2.0
"""Attach mode with what a master may do to the memory that it brings."""

import os
import signal
import time
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path

import pytest

from tests.fakes.netns import private_network
from tests.fakes.slave_client import SlaveClient
from tests.pings import unbroken
from tests.process.attach import AttachLab
from tests.process.master import Master
from tests.process.program import Program, run
from tests.waiting import wait_for
from vhostpci_shared.wire import ProtocolError

pytestmark = pytest.mark.process

ENDLESS = ("ping", "-n", "-i", "0.01", "10.9.0.1")
FLOOD = ("ping", "-q", "-f", "10.9.0.1")


@contextmanager
def start_shared(directory: Path) -> Iterator[AttachLab]:
    """A daemon and an agent, to which each test connects another master."""
    with private_network(), AttachLab(directory) as lab:
        lab.start()
        yield lab


@pytest.fixture
def lab(tmp_path: Path) -> Iterator[AttachLab]:
    """A daemon and an agent of the test's own, which cuts memory that they map."""
    with private_network(), AttachLab(tmp_path) as lab:
        lab.start()
        yield lab


def works(lab: AttachLab) -> bool:
    """Whether packets cross both ways; the first may be lost on the way back up."""
    lab.wait_carrier("UP")
    wait_for(lambda: lab.ping_from_master(1) == 1, "a first ping comes back")
    return lab.ping_from_master() == 5 and lab.ping_from_slave() == 5


def wait_descriptors(program: Program, most: int) -> None:
    """Wait until a program has no more descriptors open than `most`.

    The daemon closes a control connection a moment after the test has its answer.
    """
    wait_for(lambda: program.descriptors() <= most, program.open_files)


def resident(program: Program) -> int:
    """KiB of memory that it shares with no other process."""
    status = Path(f"/proc/{program.serving}/status").read_text()
    (line,) = [one for one in status.splitlines() if one.startswith("RssAnon")]
    return int(line.split()[1])


def test_every_ping_comes_back_and_is_counted(shared: AttachLab) -> None:
    with shared.attached():
        before = shared.packets()
        assert shared.ping_from_master(10) == 10
        assert shared.ping_from_slave(10) == 10
        shared.wait_packets(20, before)


def test_memory_table_sent_a_thousand_times_costs_no_memory_and_no_packet(
    shared: AttachLab,
) -> None:
    programs = (shared.daemon, shared.agent)
    with shared.attached() as master:
        (window,) = shared.windows()
        pings = shared.start_server([*shared.slave.prefix, *ENDLESS])
        send_table(master, 100)
        shared.wait_rings()
        before = [(one.descriptors(), resident(one)) for one in programs]
        send_table(master, 900)
        shared.wait_rings()
        pings.end(signal.SIGINT)
        assert unbroken(pings.log) > 100
        for one, (files, memory) in zip(programs, before, strict=True):
            wait_descriptors(one, files)
            # Kilobytes.  Python's memory settles after thousands, 2 MiB higher.
            assert resident(one) < memory + 3072
        assert shared.windows() == [window]


def send_table(master: Master, times: int) -> None:
    """Send it while rings run, and while they are about to."""
    for _ in range(times):
        master.frontend.set_memory()
        time.sleep(0.002)


def test_second_agent_is_refused_and_the_first_still_works(shared: AttachLab) -> None:
    with shared.attached():
        second = run(*shared.agent_argv()[:-1], "vp1")
        assert second.returncode == 1
        assert "another slave is connected" in second.stderr
        assert works(shared)


def test_second_client_of_a_window_is_refused_and_the_first_still_works(
    shared: AttachLab,
) -> None:
    with shared.attached():
        (window,) = shared.windows()
        second = SlaveClient(shared.run_dir / f"net0.ivshmem.{window}")
        with closing(second), pytest.raises(ProtocolError, match="another slave"):
            second.read()
        shared.daemon.wait_log(f"window {window} refused")
        assert works(shared)


def test_each_master_with_other_memory_gets_another_window(
    shared: AttachLab,
) -> None:
    seen, early = set(), [0, 0]

    def counts() -> list[int]:
        return [program.descriptors() for program in (shared.daemon, shared.agent)]

    def stay_level() -> bool:
        return all(now <= then for now, then in zip(counts(), early, strict=True))

    for number in range(4):
        with shared.attached():
            seen.update(shared.windows())
            assert works(shared)
            if number == 1:
                early = counts()
        shared.wait_carrier("NO-CARRIER")
    assert len(seen) == 4
    # The connection of a command takes a moment to go.  `early` may count one too, but
    # two windows that leak would still be more.
    with shared.attached():
        assert works(shared)
        wait_for(stay_level, lambda: f"{counts()} descriptors, and {early} early on")


def test_daemon_and_agent_survive_cut_memory_and_serve_the_next_master(
    lab: AttachLab,
) -> None:
    daemon, agent = programs = (lab.daemon, lab.agent)
    with lab.attached() as master:
        assert works(lab)
        master.stop_card()  # it must not touch what is cut: it has no guard
        lab.start_server([*lab.slave.prefix, *FLOOD])
        os.ftruncate(master.memory.files[0].fd, 0)
        agent.wait_log("was cut off")
        daemon.wait_log("was cut from")
    with lab.attached():
        assert works(lab)
    assert [one.process.poll() for one in programs] == [None, None]

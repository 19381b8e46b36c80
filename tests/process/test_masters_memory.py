# SPDX-License-Identifier: Apache-2.0
"""Attach mode with what a master may do to the memory that it brings."""

import os
import re
import signal
import time
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import pytest

from tests.fakes.netns import private_network
from tests.fakes.slave_client import SlaveClient
from tests.process.attach import AttachLab
from tests.process.master import Master
from tests.process.program import Program, run
from tests.waiting import wait_for
from vhostpci_shared.wire import ProtocolError

pytestmark = pytest.mark.process

ENDLESS = ("ping", "-n", "-i", "0.01", "10.9.0.1")
CALM = 0.5
"""Seconds until all rings run again."""
FLOOD = ("ping", "-q", "-f", "10.9.0.1")


@pytest.fixture
def lab(tmp_path: Path) -> Iterator[AttachLab]:
    """An empty lab, in a network namespace of its own."""
    with private_network(), AttachLab(tmp_path) as lab:
        yield lab


def works(lab: AttachLab) -> bool:
    """Whether packets cross both ways; the first may be lost on the way back up."""
    lab.wait_carrier("UP")
    wait_for(lambda: lab.ping_from_master(1) == 1, "a first ping comes back")
    return lab.ping_from_master() == 5 and lab.ping_from_slave() == 5


def descriptors(program: Program) -> int:
    return len(os.listdir(f"/proc/{program.process.pid}/fd"))


def resident(program: Program) -> int:
    """KiB of memory of its own."""
    status = Path(f"/proc/{program.process.pid}/status").read_text()
    (line,) = [one for one in status.splitlines() if one.startswith("RssAnon")]
    return int(line.split()[1])


def test_every_ping_comes_back_and_is_counted(lab: AttachLab) -> None:
    lab.start()
    with lab.attached():
        assert lab.ping_from_master(10) == 10
        assert lab.ping_from_slave(10) == 10
        lab.wait_packets(20)


def test_table_that_comes_a_thousand_times_costs_nothing(lab: AttachLab) -> None:
    programs = lab.start()
    with lab.attached() as master:
        (window,) = lab.windows()
        pings = lab.start_server([*lab.slave.prefix, *ENDLESS])
        send_table(master, 100)
        time.sleep(CALM)
        before = [(descriptors(one), resident(one)) for one in programs]
        send_table(master, 900)
        assert answered(pings) > 100
        for one, (files, memory) in zip(programs, before, strict=True):
            assert descriptors(one) <= files
            assert resident(one) < memory + 1024
        assert lab.windows() == [window]


def answered(pings: Program) -> int:
    """End a ping; return how many came back, of which none may be missing.

    Some may be there twice: what was sent, but not yet reported as used, is sent anew.
    """
    time.sleep(CALM)
    pings.end(signal.SIGINT)
    seen = {int(number) for number in re.findall(r"icmp_seq=(\d+)", pings.log)}
    assert seen == set(range(1, len(seen) + 1))
    return len(seen)


def send_table(master: Master, times: int) -> None:
    """Send it while rings run, and while they are about to."""
    for _ in range(times):
        master.frontend.set_memory()
        time.sleep(0.002)


def test_second_agent_is_refused_and_the_first_goes_on(lab: AttachLab) -> None:
    lab.start()
    with lab.attached():
        second = run(*lab.agent_argv()[:-1], "vp1")
        assert second.returncode == 1
        assert "another slave is connected" in second.stderr
        assert works(lab)


def test_second_client_of_a_window_is_refused_and_the_first_goes_on(
    lab: AttachLab,
) -> None:
    daemon, _ = lab.start()
    with lab.attached():
        (window,) = lab.windows()
        second = SlaveClient(lab.run_dir / f"net0.ivshmem.{window}")
        with closing(second), pytest.raises(ProtocolError, match="another slave"):
            second.read()
        daemon.wait_log(f"window {window} refused")
        assert works(lab)


def test_master_that_comes_back_with_other_memory_has_another_window(
    lab: AttachLab,
) -> None:
    programs = lab.start()
    seen, counts = set(), []
    for _ in range(4):
        with lab.attached():
            assert works(lab)
            seen.update(lab.windows())
            counts.append([descriptors(one) for one in programs])
        lab.wait_carrier("NO-CARRIER")
    assert len(seen) == 4
    assert counts[1:] == [counts[1]] * 3


def test_memory_that_is_cut_ends_nobody_and_the_next_master_is_served(
    lab: AttachLab,
) -> None:
    programs = lab.start()
    daemon, agent = programs
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

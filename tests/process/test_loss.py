# SPDX-License-Identifier: Apache-2.0
"""What is lost when the agent or the daemon ends and comes back, with traffic on.

Numbered frames go both ways.  Each of them that a kernel took must arrive.
"""

import ast
import signal
import sys
import time
from dataclasses import dataclass

import pytest

from tests.process.kept import kill, replace, upgrade
from tests.process.lab import SLAVE_TAP, Lab
from tests.process.master import TAP as MASTER_TAP
from tests.process.program import Program

pytestmark = pytest.mark.process

NUMBERED = (sys.executable, "-m", "tests.process.numbered")
SHORT = 0.5
"""Seconds of traffic."""


@dataclass(frozen=True, slots=True)
class Stream:
    """Numbered frames in one direction."""

    sender: Program
    receiver: Program

    def lost(self) -> set[int]:
        """End it; return which frames were taken and have not arrived."""
        taken, came = numbers(self.sender), numbers(self.receiver)
        assert len(taken) > 1000, "there was next to no traffic"
        assert sorted(came) == came, "they come in another order"
        return set(taken) - set(came)


def numbers(program: Program) -> list[int]:
    """End a program; return the numbers that it prints."""
    assert program.end(signal.SIGTERM) == 0, program.log
    found: list[tuple[int, int]] = ast.literal_eval(program.log.splitlines()[-1])
    return [number for start, end in found for number in range(start, end)]


def start(lab: Lab) -> list[Stream]:
    """Start everything, with a stream from the master and one to it."""
    lab.start_daemon("--keeper", "auto")
    lab.start_agent("--keep-tap")
    lab.start_master().load()
    lab.wait_carrier("UP")
    inside = [*lab.slave.prefix, *NUMBERED]
    ends = ([*NUMBERED], MASTER_TAP), (inside, SLAVE_TAP)
    streams = []
    for here, there in (ends, ends[::-1]):
        receiver = lab.start_server([*there[0], "receive", there[1]])
        receiver.wait_log("ready")
        sender = lab.start_server([*here[0], "send", here[1]])
        sender.wait_log("ready")
        streams.append(Stream(sender, receiver))
    time.sleep(SHORT)
    return streams


def test_agent_that_ends_loses_nothing(lab: Lab) -> None:
    """What the master sends waits in its ring; the TAP is emptied before the end.

    Without an agent the TAP has no carrier, so the slave's kernel takes nothing.
    """
    streams = start(lab)
    for _ in range(2):
        assert lab.agent.end() == 0
        lab.start_agent("--keep-tap")
        lab.wait_carrier("UP")
        time.sleep(SHORT)
    assert [stream.lost() for stream in streams] == [set(), set()]


def test_daemon_that_is_replaced_loses_nothing(lab: Lab) -> None:
    """A slave process has the kicks and calls itself, and does not wait for it."""
    streams = start(lab)
    for how in (upgrade, kill, upgrade, kill):
        replace(lab, how)
        time.sleep(SHORT / 2)
    assert [stream.lost() for stream in streams] == [set(), set()]

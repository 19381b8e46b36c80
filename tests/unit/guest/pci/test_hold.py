# SPDX-License-Identifier: Apache-2.0
"""The helper that keeps devices open for a moment longer than the agent lives."""

import os
import subprocess
import sys
import time
from collections.abc import Iterator

import pytest

from tests.waiting import is_hung_up
from vhostpci_guest.pci.hold import HOLD, LET_CLOSE, MOST, HoldOrders
from vhostpci_guest.privileges.channel import BadOrder, Order

LINGER = 0.5
AGENT = f"""
import os, sys
from vhostpci_guest.pci import hold
from vhostpci_guest.pci.hold import HoldOrders, Holder
from vhostpci_guest.privileges.helper import Helper

hold.LINGER = {LINGER}
held = HoldOrders()
helper = Helper("a-helper", "holds", set(), lambda pid: held.handlers(), held.linger)
holder = Holder(helper.channel)
holder.hold("a", 1)
print("held", flush=True)
for line in sys.stdin:
    if line == "let close\\n":
        holder.let_close("a")
    helper.close()
    break
"""
"""Has its standard output held: its reader sees its end when no copy is left."""


@pytest.fixture
def agent() -> Iterator[subprocess.Popen[bytes]]:
    with subprocess.Popen(
        [sys.executable, "-c", AGENT], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    ) as agent:
        assert agent.stdout is not None
        assert agent.stdout.readline() == b"held\n"
        yield agent
        agent.kill()


def test_descriptor_stays_open_for_a_while_after_an_agent_that_was_killed(
    agent: subprocess.Popen[bytes],
) -> None:
    assert agent.stdout is not None
    start = time.monotonic()
    agent.kill()
    assert agent.stdout.read() == b""
    assert time.monotonic() - start > LINGER / 2


def test_agent_that_has_let_it_close_leaves_nothing_open(
    agent: subprocess.Popen[bytes],
) -> None:
    assert agent.stdin is not None
    assert agent.stdout is not None
    agent.stdin.write(b"let close\n")
    agent.stdin.close()
    # The agent waits for its helper, so there is nothing to wait for afterwards.
    assert agent.wait() == 0
    assert is_hung_up(agent.stdout.fileno())


def order(name: str, device: str, *fds: int) -> Order:
    return Order(name, [device], fds)


def test_number_of_descriptors_is_bounded() -> None:
    orders = HoldOrders()
    do = orders.handlers()
    try:
        for number in range(MOST):
            do[HOLD](order(HOLD, str(number), 0))
        with pytest.raises(BadOrder, match="more than"):
            do[HOLD](order(HOLD, "one more", 0))
        do[HOLD](order(HOLD, "0", 0))  # in place of the one before
    finally:
        for number in range(MOST):
            do[LET_CLOSE](order(LET_CLOSE, str(number)))


def test_copy_is_the_helpers_own_and_is_closed() -> None:
    orders = HoldOrders()
    do = orders.handlers()
    read_end, write_end = os.pipe()
    do[HOLD](order(HOLD, "a", write_end))
    os.close(write_end)
    os.set_blocking(read_end, False)
    with pytest.raises(BlockingIOError):
        os.read(read_end, 1)
    do[LET_CLOSE](order(LET_CLOSE, "a"))
    assert os.read(read_end, 1) == b""
    do[LET_CLOSE](order(LET_CLOSE, "a"))
    os.close(read_end)

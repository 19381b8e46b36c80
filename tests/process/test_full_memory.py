# SPDX-License-Identifier: Apache-2.0
"""The master's memory is in a file system that is full for a while.

The slave then cannot write into receive buffers that no page was given to yet: a read
from the TAP into such a buffer fails with EFAULT, and the packet is lost.
"""

import os
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import pytest

from tests.fakes.tmpfs import mounted
from tests.process.lab import SLAVE_ADDRESS, Lab
from tests.process.master import (
    BUFFERS,
    RX_AREA,
    SLOTS,
    TX_BUFFER,
    Master,
)
from tests.process.program import run
from tests.waiting import wait_for

pytestmark = pytest.mark.process

BROADCAST = ("ping", "-n", "-q", "-b", "-i", "0.01", "10.9.0.255")
"""Packets that no machine answers: the master must not need a page for an answer."""


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system that can be filled."""
    with mounted(tmp_path / "disk", 40) as directory:
        yield directory


def fill(path: Path) -> None:
    """Write a file until the file system has no page left."""
    disk = os.statvfs(path.parent)
    with suppress(OSError):  # another may have taken a page meanwhile
        path.write_bytes(bytes(disk.f_bavail * disk.f_frsize))
    assert not os.statvfs(path.parent).f_bavail


def give_pages_to_transmit_buffers(master: Master) -> None:
    """Have the master send although the file system is full.

    Its memory is mapped into this process, which a SIGBUS would end when the master's
    network stack sends by itself, as an ARP answer, into a buffer without a page.
    """
    first = BUFFERS + RX_AREA  # the receive buffers lie before them
    os.posix_fallocate(master.memory.files[0].fd, first, SLOTS * TX_BUFFER)


def test_link_goes_down_while_the_memory_is_full_and_comes_back(
    small_disk: Path, lab: Lab
) -> None:
    lab.memory_dir = small_disk / "memory"
    daemon = lab.start_daemon()
    agent = lab.start_agent()
    master = lab.start_master()
    master.load()
    lab.wait_carrier("UP")
    wait_for(lambda: lab.ping_from_slave(1) == 1, "a first ping comes back")
    give_pages_to_transmit_buffers(master)
    fill(small_disk / "filler")
    flood = lab.start_server([*lab.slave.prefix, *BROADCAST])
    lab.wait_carrier("NO-CARRIER")
    agent.wait_log("Bad address")
    # Several at once, which fill several transmit buffers.
    run("ping", "-n", "-q", "-c", "8", "-l", "8", "-W", "1", SLAVE_ADDRESS)
    os.unlink(small_disk / "filler")
    lab.wait_carrier("UP")
    flood.close()
    wait_for(lambda: lab.ping_from_slave(1) == 1, "a ping comes back")
    assert lab.ping_from_master() == 5
    # It was neither the master's driver nor the TAP.
    assert "broke" not in daemon.log
    assert "broken" not in agent.log

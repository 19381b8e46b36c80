# SPDX-License-Identifier: Apache-2.0
"""A vector of uio_vhostpci that would fire itself again and again by a tie."""

import os
import signal
import time

from tests.vm.bare_slave import Slave
from tests.vm.window_file import start


def assert_none(slave: Slave) -> None:
    """Fire a vector that is tied to its own doorbell; it may fire only this once.

    A processor that rang the doorbell would serve that interrupt again and again.
    """
    job = start(slave.vm, LOOP, "armed")
    os.eventfd_write(slave.vectors[0][1], 1)
    job.wait_said("signalled")
    time.sleep(0.5)
    job.send(signal.SIGUSR1)
    job.wait_said("times")
    assert int(job.output().split("fired")[1].split()[0]) <= 2  # DEBUG_SHIRQ adds one


# Ties the eventfd of vector 1 to the doorbell of this very vector.
LOOP = """
node = open_node()
eventfd = arm(node, 1)
tie(node, eventfd, peer=0, vector=1)

def fired():
    lines = Path("/proc/interrupts").read_text().splitlines()
    (line,) = [line for line in lines if "uio_vhostpci" in line]
    return sum(int(word) for word in line.split()[1:] if word.isdecimal())

signal.signal(signal.SIGUSR1, lambda *_: say("fired", fired() - before, "times"))
before = fired()
say("armed")
select.select([eventfd], [], [])
say("signalled")
while True:
    signal.pause()
"""

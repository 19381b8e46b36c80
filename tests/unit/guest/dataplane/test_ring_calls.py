# SPDX-License-Identifier: Apache-2.0
"""How many system calls the worker's thread makes: one costs as much as a packet."""

from pathlib import Path

from tests.fakes.pair import HDR, Pair, wait_for

ROUND_TRIPS = 200


def reads() -> int:
    """Return how many reads the worker's thread has made, also those that failed."""
    for task in Path("/proc/self/task").iterdir():
        if (task / "comm").read_text().startswith("vhostpci-"):
            io = (task / "io").read_text()
            return int(io.partition("syscr: ")[2].split()[0])
    raise AssertionError("there is no worker")


def test_empty_tap_is_not_read_when_a_request_comes(start: int) -> None:
    with Pair(start=start, num=256, event_idx=True, threaded=True) as pair:
        for _ in range(ROUND_TRIPS):
            pair.rx.post(100)
        pair.rx.kick()
        before = reads()
        for _ in range(ROUND_TRIPS):
            pair.tx.send(HDR, b"request")
            pair.tx.kick()
            assert wait_for(pair.packets) == [HDR + b"request"]
            assert wait_for(pair.tx.collect)
            pair.tap.send(HDR + b"reply")
            assert wait_for(pair.rx.collect)
        # The kick, the reply, and that there is no other packet.  A thread that is
        # slow to fall asleep may see the one or the other twice.
        assert (reads() - before) / ROUND_TRIPS < 4

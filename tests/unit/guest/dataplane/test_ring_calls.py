# SPDX-License-Identifier: Apache-2.0
"""How many system calls the worker's thread makes: one costs as much as a packet."""

from tests.fakes.pair import HDR, RX, Pair, wait_for
from tests.threads import only_thread
from tests.waiting import eventually

ROUND_TRIPS = 200
BURST = 64


def reads() -> int:
    """Return how many reads the worker's thread has made, also those that failed."""
    io = (only_thread("vhostpci-0") / "io").read_text()
    return int(io.partition("syscr: ")[2].split()[0])


def round_trips(pair: Pair) -> None:
    for _ in range(ROUND_TRIPS):
        pair.rx.post(100)
    pair.rx.kick()
    for _ in range(ROUND_TRIPS):
        pair.tx.send(HDR, b"request")
        pair.tx.kick()
        assert wait_for(pair.packets) == [HDR + b"request"]
        assert wait_for(pair.tx.collect)
        pair.tap.send(HDR + b"reply")
        assert wait_for(pair.rx.collect)


def test_empty_tap_is_not_read_when_a_request_comes_or_its_reply(start: int) -> None:
    with Pair(start=start, num=256, event_idx=True, threaded=True) as pair:
        before = reads()
        round_trips(pair)
        # The kick and the reply.  After each eighth reply the TAP is read once more.  A
        # thread that is slow to fall asleep may see the one or the other twice.
        assert (reads() - before) / ROUND_TRIPS < 2.6


def test_packets_that_come_together_after_single_ones_are_taken_together(
    start: int,
) -> None:
    with Pair(start=start, num=256, event_idx=True, threaded=True) as pair:
        round_trips(pair)

        # The thread may be awake, and faster than we are.
        assert eventually(lambda: comes_together(pair))


def comes_together(pair: Pair) -> bool:
    """Send packets; return whether some were shown to the master together."""
    before = pair.status(RX).stats.used_updates
    for _ in range(BURST):
        pair.rx.post(100)
    pair.rx.kick()
    for _ in range(BURST):
        pair.tap.send(HDR + b"packet")
    taken = 0
    while taken < BURST:
        taken += len(wait_for(pair.rx.collect))
    return pair.status(RX).stats.used_updates - before < BURST / 2

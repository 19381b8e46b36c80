# SPDX-License-Identifier: Apache-2.0
"""Kicks and calls: sent when they are wanted, and only then."""

import pytest

from tests.fakes.driver import NO_NOTIFY
from tests.fakes.pair import HDR, RX, TX, Pair
from vhostpci_guest.interfaces import Doorbell

both = pytest.mark.parametrize("event_idx", [False, True], ids=["flags", "event_idx"])


def send(pair: Pair, count: int = 1) -> None:
    for _ in range(count):
        pair.tx.send(HDR, b"x")


@both
def test_an_idle_ring_asks_for_kicks(start: int, event_idx: bool) -> None:
    with Pair(start=start, event_idx=event_idx) as pair:
        # What a predecessor left in the ring says that it wants no kick.
        pair.memory.store(pair.tx.used, 2, NO_NOTIFY)
        pair.memory.store(pair.tx.avail_event, 2, (start - 5) % 2**16)
        pair.settle()
        send(pair)
        assert pair.tx.kick()


@both
def test_a_kick_is_asked_for_each_time_the_ring_is_empty(
    start: int, event_idx: bool
) -> None:
    with Pair(start=start, event_idx=event_idx) as pair:
        for _ in range(10):
            pair.settle()
            send(pair)
            assert pair.tx.kick()
            pair.settle()
            pair.tx.collect()


@both
def test_a_ring_with_work_asks_for_no_kicks(start: int, event_idx: bool) -> None:
    with Pair(start=start, event_idx=event_idx) as pair:
        pair.settle()
        send(pair)
        assert pair.tx.kick()
        assert pair.worker.step() == 1  # there was work, so it did not enable kicks
        for _ in range(3):
            send(pair)
            assert not pair.tx.kick()


@both
def test_the_receive_ring_asks_for_kicks_only_without_buffers(
    start: int, event_idx: bool
) -> None:
    with Pair(start=start, event_idx=event_idx) as pair:
        pair.settle()
        pair.rx.post(100)
        assert pair.rx.kick()
        pair.settle()
        for _ in range(3):
            pair.rx.post(100)
            assert not pair.rx.kick()
        for _ in range(4):
            pair.tap.send(HDR + b"x")
        pair.settle()
        pair.rx.collect()
        pair.rx.post(100)
        assert pair.rx.kick()


@both
def test_a_held_packet_asks_for_kicks(start: int, event_idx: bool) -> None:
    with Pair(start=start, event_idx=event_idx, hold=100) as pair:
        pair.settle()
        pair.rx.post(100)
        assert pair.rx.kick()
        pair.tap.send(HDR + bytes(150))
        pair.settle()
        pair.rx.post(100)
        assert pair.rx.kick()
        pair.settle()
        assert len(pair.rx.collect()) == 2


@both
def test_without_a_kick_eventfd_no_kick_is_ever_asked_for(
    start: int, event_idx: bool
) -> None:
    with Pair(start=start, event_idx=event_idx, kicks=False) as pair:
        kicks = 0
        for _ in range(10):
            send(pair)
            pair.settle()
            pair.tx.collect()
            send(pair)
            kicks += pair.tx.kick()
            pair.settle()
            pair.tx.collect()
        # EVENT_IDX cannot say "never": the index that asks for a kick comes round
        # once in 65,536 chains.
        assert kicks <= event_idx


@both
def test_a_batch_is_given_back_at_once_with_one_call(
    start: int, event_idx: bool
) -> None:
    with Pair(start=start, event_idx=event_idx, num=64) as pair:
        pair.tx.ask_for_calls(True)
        send(pair, 30)
        pair.settle()
        assert len(pair.tx.collect()) == 30
        assert pair.tx.calls() == 1
        stats = pair.status(TX).stats
        assert (stats.used_updates, stats.calls) == (1, 1)


@both
def test_no_call_is_sent_that_the_driver_did_not_ask_for(
    start: int, event_idx: bool
) -> None:
    with Pair(start=start, event_idx=event_idx) as pair:
        send(pair)
        pair.settle()
        pair.tx.collect()
        pair.tx.calls()
        for _ in range(5):
            pair.tx.ask_for_calls(False)
            send(pair)
            pair.settle()
            pair.tx.collect()
            assert pair.tx.calls() == 0
            pair.tx.ask_for_calls(True)
            send(pair)
            pair.settle()
            pair.tx.collect()
            assert pair.tx.calls() == 1


@pytest.mark.split_ring
def test_a_call_comes_when_the_chain_asked_for_is_back(start: int) -> None:
    with Pair(start=start, event_idx=True) as pair:
        send(pair)
        pair.settle()
        pair.tx.collect()
        pair.tx.calls()
        pair.memory.store(pair.tx.used_event, 2, (start + 1 + 2) % 2**16)
        calls = []
        for _ in range(5):
            send(pair)
            pair.settle()
            pair.tx.collect()
            calls.append(pair.tx.calls())
        assert calls == [0, 0, 1, 0, 0]


@pytest.mark.split_ring
def test_the_first_call_of_a_ring_is_always_sent(start: int) -> None:
    # A predecessor may have updated the used index, and ended before it called.
    # (Without EVENT_IDX each update looks at the flags.)
    with Pair(start=start, event_idx=True) as pair:
        pair.tx.ask_for_calls(False)
        send(pair)
        pair.settle()
        assert pair.tx.calls() == 1


@both
def test_a_doorbell_gets_peer_and_vector(start: int, event_idx: bool) -> None:
    with Pair(start=start, event_idx=event_idx, running=False) as pair:
        register = pair.memory.allocate(4, 4)
        call = Doorbell(pair.memory.host_addr(register), peer=0x1234, vector=3)
        pair.start(TX, call=call)
        pair.tx.ask_for_calls(True)
        send(pair)
        pair.settle()
        assert pair.memory.load(register, 4) == 0x12340003
        assert pair.memory.read(register, 4) == b"\x03\x00\x34\x12"  # little-endian
        assert pair.tx.calls() == 0


@both
def test_a_ring_may_have_no_call(start: int, event_idx: bool) -> None:
    with Pair(start=start, event_idx=event_idx, running=False) as pair:
        pair.start(RX, call=None)
        pair.rx.post(100)
        pair.tap.send(HDR + b"x")
        pair.settle()
        assert len(pair.rx.collect()) == 1


@both
def test_a_chain_that_comes_after_kicks_were_asked_for_is_taken_without_a_kick(
    start: int, event_idx: bool
) -> None:
    # settle() ends by asking for kicks; the next step() must look again itself.
    # Chains that come while the ring asks: test_ring_order.py.
    with Pair(start=start, event_idx=event_idx) as pair:
        pair.settle()
        send(pair)
        assert pair.worker.step() == 1

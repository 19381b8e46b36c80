# SPDX-License-Identifier: Apache-2.0
"""Our data plane: the control plane's words in the C ring driver's, and back.

The rings are a fake master's, the TAP is a socket pair.
"""

import os
from collections.abc import Iterator

import pytest

from tests.fakes.driver import Driver, Machine
from tests.fakes.pair import HDR
from tests.waiting import eventually
from vhostpci_guest.dataplane.interface import (
    Memory,
    RingRefused,
    RingStart,
    used_index,
)
from vhostpci_guest.dataplane.workers import RingPlane
from vhostpci_guest.eventfds import drain
from vhostpci_guest.interfaces import Eventfd, Mmio
from vhostpci_guest.serve import features
from vhostpci_shared import metadata as md
from vhostpci_shared.metadata import AgentRingState, RingFlag
from vhostpci_shared.virtio import Feature

RX, TX = 0, 1
FEATURES = Feature.F_VERSION_1 | Feature.NET_F_MRG_RXBUF
OPTIONS = features.options(FEATURES, 1500)


class Bench:
    """A data plane between a fake master and a pair of sockets."""

    def __init__(self) -> None:
        import socket

        self.machine = Machine(num=8)
        self.ours, self.tap = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self.ours.setblocking(False)
        self.tap.settimeout(5)
        self.plane = RingPlane([self.ours.fileno()])
        self.memory = [
            Memory(piece.guest_addr, piece.size, piece.host_addr)
            for piece in self.machine.memory.table()
        ]
        self.plane.set_memory(self.memory)

    def driver(self, index: int) -> Driver:
        return self.machine.rx if index == RX else self.machine.tx

    def entry(self, index: int, **changes: int) -> md.Ring:
        driver = self.driver(index)
        fields = {
            "session": 0,
            "flags": RingFlag.STARTED | RingFlag.ENABLED | RingFlag.CALL,
            "size": driver.num,
            "desc": driver.desc,
            "driver": driver.avail,
            "device": driver.used,
            "base": 0,
            "kick_vector": 1 + index,
            "call_peer": 2,
            "call_vector": index,
        }
        return md.Ring(**(fields | changes))  # type: ignore[arg-type]

    def start(self, index: int, *, base: int = 0, **changes: int) -> Eventfd:
        """Start a ring; return the doorbell that is the plane's from then on."""
        call = Eventfd(os.dup(self.driver(index).call_fd))
        start = RingStart(
            ring=self.entry(index, **changes),
            base=base,
            kick=self.driver(index).kick_fd,
            call=call,
            entry=0,
            options=OPTIONS,
        )
        self.plane.start(index, start)
        return call

    def close(self) -> None:
        self.plane.close()
        self.ours.close()
        self.tap.close()
        self.machine.__exit__(None, None, None)


@pytest.fixture
def bench() -> Iterator[Bench]:
    bench = Bench()
    yield bench
    bench.close()


def send(bench: Bench, payload: bytes) -> None:
    driver = bench.driver(TX)
    driver.send(HDR + payload)
    driver.kick()


def test_packet_of_the_master_comes_out_of_the_tap(bench: Bench) -> None:
    bench.start(TX)
    send(bench, b"hello")
    assert bench.tap.recv(100) == HDR + b"hello"
    assert eventually(lambda: bench.plane.report(TX).packets == 1)
    assert eventually(lambda: bench.plane.report(TX).index == 1)
    assert bench.plane.report(TX).state is AgentRingState.RUNNING
    assert bench.plane.report(TX).reason == ""


def test_stop_says_where_the_ring_stands(bench: Bench) -> None:
    bench.start(TX)
    for _ in range(3):
        send(bench, b"x")
        bench.tap.recv(100)
    assert eventually(lambda: bench.driver(TX).used_idx() == 3)
    assert bench.plane.stop(TX) == 3
    assert bench.plane.report(TX).state is AgentRingState.STOPPED
    assert bench.plane.report(TX).index == 3


def test_doorbell_is_closed_with_its_ring(bench: Bench) -> None:
    call = bench.start(TX)
    os.fstat(call.fd)
    bench.plane.stop(TX)
    with pytest.raises(OSError, match="Bad file"):
        os.fstat(call.fd)


def test_ring_that_cannot_be_is_refused(bench: Bench) -> None:
    with pytest.raises(RingRefused) as refused:
        bench.start(TX, desc=1 << 50)
    assert refused.value.state is AgentRingState.BROKEN
    assert "memory region" in str(refused.value)


def test_ring_that_is_somebody_elses_is_fenced(bench: Bench) -> None:
    with pytest.raises(RingRefused) as refused:
        bench.start(TX, base=5)
    assert refused.value.state is AgentRingState.FENCED


def test_broken_ring_is_told(bench: Bench) -> None:
    bench.start(TX)
    bench.driver(TX).publish(100)
    os.eventfd_write(bench.driver(TX).kick_fd, 1)
    assert eventually(lambda: drain(bench.plane.fileno()))
    report = bench.plane.report(TX)
    assert report.state is AgentRingState.BROKEN
    assert "avail index" in report.reason
    bench.plane.stop(TX)


def test_ring_starts_again_after_it_broke(bench: Bench) -> None:
    bench.start(TX)
    bench.driver(TX).publish(100)
    os.eventfd_write(bench.driver(TX).kick_fd, 1)
    assert eventually(lambda: drain(bench.plane.fileno()))
    base = bench.plane.stop(TX)
    bench.driver(TX).forget(base)
    bench.start(TX, base=base)
    send(bench, b"again")
    assert bench.tap.recv(100) == HDR + b"again"


def test_doorbell_register_gets_peer_and_vector(bench: Bench) -> None:
    register = bench.machine.memory.allocate(16)
    start = RingStart(
        ring=bench.entry(TX),
        base=0,
        kick=None,
        call=Mmio(bench.machine.memory.host_addr(register), 3, 1),
        entry=0,
        options=OPTIONS,
    )
    bench.plane.start(TX, start)
    send(bench, b"x")
    assert eventually(lambda: bench.machine.memory.load(register, 4) == 0x30001)


def test_session_that_is_over_fences_the_ring(bench: Bench) -> None:
    entry = bench.machine.memory.allocate(64, 64)
    bench.machine.memory.write(entry, bytes(bench.entry(TX, session=7)))
    start = RingStart(
        ring=bench.entry(TX, session=7),
        base=0,
        kick=bench.driver(TX).kick_fd,
        call=None,
        entry=bench.machine.memory.host_addr(entry),
        options=OPTIONS,
    )
    bench.plane.start(TX, start)
    bench.machine.memory.store(entry, 8, 8)
    send(bench, b"x")
    assert eventually(lambda: drain(bench.plane.fileno()))
    assert bench.plane.report(TX).state is AgentRingState.FENCED
    bench.plane.stop(TX)


def test_used_index_is_read_from_the_ring(bench: Bench) -> None:
    bench.driver(TX).move_used(0x1234)
    assert used_index(bench.entry(TX), bench.memory) == 0x1234


@pytest.mark.parametrize("device", [1 << 50, 2**64 - 1, 2**64 - 2])
def test_used_index_outside_the_memory_is_refused(bench: Bench, device: int) -> None:
    with pytest.raises(RingRefused, match="not in the memory table"):
        used_index(bench.entry(TX, device=device), bench.memory)


def test_ring_of_no_pair_has_no_report(bench: Bench) -> None:
    assert bench.plane.report(9).state is AgentRingState.IDLE

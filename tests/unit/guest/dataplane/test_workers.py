# SPDX-License-Identifier: Apache-2.0
"""Our data plane: the control plane's words in the C ring driver's, and back.

The rings are a fake master's, the TAP is a socket pair.
"""

import errno
import os
from collections.abc import Iterator
from dataclasses import replace

import pytest

from tests.fakes.driver import Driver, Machine
from tests.fakes.pair import HDR
from tests.threads import is_gone, only_thread
from tests.waiting import TIMEOUT, eventually
from vhostpci_guest.dataplane.interface import (
    RingConf,
    RingRefused,
    used_index,
)
from vhostpci_guest.dataplane.workers import Workers, thread_name
from vhostpci_guest.eventfds import drain
from vhostpci_guest.interfaces import Doorbell, Eventfd
from vhostpci_guest.serve import features
from vhostpci_shared.metadata import AgentRingState
from vhostpci_shared.virtio import Feature

RX, TX = 0, 1
FEATURES = Feature.F_VERSION_1 | Feature.NET_F_MRG_RXBUF
OPTIONS = features.options(FEATURES)


class Bench:
    """A data plane between a fake master and a pair of sockets."""

    def __init__(self) -> None:
        import socket

        self.machine = Machine(num=8)
        self.ours, self.tap = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self.ours.setblocking(False)
        self.tap.settimeout(TIMEOUT)
        self.plane = Workers([self.ours.fileno()], "web")
        self.memory = self.machine.memory.table()
        self.plane.set_memory(self.memory)

    def driver(self, index: int) -> Driver:
        return self.machine.rx if index == RX else self.machine.tx

    def conf(self, index: int, **changes: object) -> RingConf:
        driver = self.driver(index)
        conf = RingConf(
            desc=driver.desc,
            driver=driver.avail,
            device=driver.used,
            size=driver.num,
            base=0,
            hdr_len=OPTIONS.hdr_len,
            max_packet=OPTIONS.max_packet,
            mergeable=OPTIONS.mergeable,
            kick_fd=driver.kick_fd,
        )
        return replace(conf, **changes)  # type: ignore[arg-type]

    def start(self, index: int, **changes: object) -> Eventfd:
        """Start a ring; return the call eventfd, which is the plane's from then on."""
        call = Eventfd(os.dup(self.driver(index).call_fd))
        self.plane.start(index, self.conf(index, call=call, **changes))
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
    assert eventually(lambda: bench.plane.status(TX).stats.packets == 1)
    assert eventually(lambda: bench.plane.status(TX).index == 1)
    assert bench.plane.status(TX).state is AgentRingState.RUNNING
    assert bench.plane.status(TX).reason == ""


def test_stop_says_where_the_ring_stands(bench: Bench) -> None:
    bench.start(TX)
    for _ in range(3):
        send(bench, b"x")
        bench.tap.recv(100)
    assert eventually(lambda: bench.driver(TX).used_idx() == 3)
    assert bench.plane.stop(TX) == 3
    assert bench.plane.status(TX).state is AgentRingState.STOPPED
    assert bench.plane.status(TX).index == 3


def test_doorbell_is_closed_with_its_ring(bench: Bench) -> None:
    call = bench.start(TX)
    os.fstat(call.fd)
    bench.plane.stop(TX)
    with pytest.raises(OSError, match="Bad file"):
        os.fstat(call.fd)


@pytest.mark.parametrize("refused", [False, True], ids=["stopped", "refused"])
def test_kick_that_is_given_is_closed_with_its_ring(
    bench: Bench, *, refused: bool
) -> None:
    kick = os.dup(bench.driver(TX).kick_fd)
    if refused:
        with pytest.raises(RingRefused):
            bench.start(TX, kick_fd=kick, owns_kick=True, desc=1 << 50)
    else:
        bench.start(TX, kick_fd=kick, owns_kick=True)
        send(bench, b"hello")
        assert bench.tap.recv(100) == HDR + b"hello"
        bench.plane.stop(TX)
    with pytest.raises(OSError, match="Bad file"):
        os.fstat(kick)
    os.fstat(bench.driver(TX).kick_fd)


def test_kick_that_stays_the_devices_is_not_closed(bench: Bench) -> None:
    bench.start(TX)
    bench.plane.stop(TX)
    os.fstat(bench.driver(TX).kick_fd)


def test_ring_that_cannot_be_is_refused(bench: Bench) -> None:
    with pytest.raises(RingRefused) as refused:
        bench.start(TX, desc=1 << 50)
    assert refused.value.state is AgentRingState.BROKEN
    assert "memory region" in str(refused.value)


def test_call_eventfd_of_a_ring_that_is_refused_is_closed(bench: Bench) -> None:
    call = Eventfd(os.dup(bench.driver(TX).call_fd))
    with pytest.raises(RingRefused):
        bench.plane.start(TX, bench.conf(TX, desc=1 << 50, call=call))
    with pytest.raises(OSError, match="Bad file"):
        os.fstat(call.fd)


def test_ring_of_another_back_end_is_fenced(bench: Bench) -> None:
    with pytest.raises(RingRefused) as refused:
        bench.start(TX, base=5)
    assert refused.value.state is AgentRingState.FENCED


def test_broken_ring_is_told(bench: Bench) -> None:
    bench.start(TX)
    bench.driver(TX).publish(100)
    os.eventfd_write(bench.driver(TX).kick_fd, 1)
    assert eventually(lambda: drain(bench.plane.fileno()))
    status = bench.plane.status(TX)
    assert status.state is AgentRingState.BROKEN
    assert "avail index" in status.reason
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
    call = Doorbell(bench.machine.memory.host_addr(register), 3, 1)
    bench.plane.start(TX, bench.conf(TX, kick_fd=None, call=call))
    send(bench, b"x")
    assert eventually(lambda: bench.machine.memory.load(register, 4) == 0x30001)


def test_session_that_is_over_fences_the_ring(bench: Bench) -> None:
    entry = bench.machine.memory.allocate(64, 64)
    bench.machine.memory.store(entry, 8, 7)
    meta_addr = bench.machine.memory.host_addr(entry)
    bench.plane.start(TX, bench.conf(TX, session=7, meta_addr=meta_addr))
    bench.machine.memory.store(entry, 8, 8)
    send(bench, b"x")
    assert eventually(lambda: drain(bench.plane.fileno()))
    assert bench.plane.status(TX).state is AgentRingState.FENCED
    bench.plane.stop(TX)


def test_used_index_is_read_from_the_ring(bench: Bench) -> None:
    bench.driver(TX).move_used(0x1234)
    assert used_index(bench.driver(TX).used, bench.memory) == 0x1234


@pytest.mark.parametrize("device", [1 << 50, 2**64 - 1, 2**64 - 2])
def test_used_index_outside_the_memory_is_refused(bench: Bench, device: int) -> None:
    with pytest.raises(RingRefused, match="not in the memory table"):
        used_index(device, bench.memory)


def test_ring_of_no_pair_is_idle(bench: Bench) -> None:
    assert bench.plane.status(9).state is AgentRingState.IDLE


@pytest.mark.parametrize(
    ("device", "pair", "name"),
    [
        ("web", 0, "web/0"),
        ("a-name-of-20-letters", 7, "a-name-of-20-/7"),
        ("a-name-of-20-letters", 12, "a-name-of-20/12"),
        (
            "\N{GREEK SMALL LETTER ALPHA}" * 9,
            0,
            "\N{GREEK SMALL LETTER ALPHA}" * 6 + "/0",
        ),
        ("", 1, "/1"),
    ],
)
def test_name_of_a_thread_tells_device_and_pair(
    device: str, pair: int, name: str
) -> None:
    assert thread_name(device, pair) == name
    assert len(name.encode()) <= 15


def test_threads_have_their_names_and_processors(bench: Bench) -> None:
    cpu = min(os.sched_getaffinity(0))
    plane = Workers([bench.ours.fileno()], "db", cpus=frozenset({cpu}))
    try:
        web, db = (int(only_thread(name).name) for name in ("web/0", "db/0"))
        assert os.sched_getaffinity(db) == {cpu}
        assert os.sched_getaffinity(web) == os.sched_getaffinity(0)
    finally:
        plane.close()


def test_capture_ends_with_the_data_plane(bench: Bench) -> None:
    """Its memory goes when no thread can copy into it any more."""
    capture = bench.plane.capture(100)
    assert bench.plane.captures
    bench.plane.close()
    assert not capture.open
    assert capture.fds == []
    assert not bench.plane.captures


def test_threads_end_also_if_the_capture_does_not(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail() -> None:
        close()
        raise OSError(errno.EIO, os.strerror(errno.EIO))

    capture = bench.plane.capture(100)
    close = capture.close
    with monkeypatch.context() as patch:
        patch.setattr(capture, "close", fail)
        with pytest.raises(OSError, match="Input/output error"):
            bench.plane.close()
    assert is_gone("web/0")

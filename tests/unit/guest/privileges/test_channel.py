# SPDX-License-Identifier: Apache-2.0
"""Orders to a helper, and what it answers; the agent may be hostile."""

import errno
import json
import os
import resource
import socket
import struct
import threading
from collections.abc import Iterator
from dataclasses import dataclass

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.waiting import TIMEOUT
from vhostpci_guest.errors import Unusable
from vhostpci_guest.privileges.channel import (
    LONGEST,
    Answer,
    BadOrder,
    Channel,
    Order,
    serve,
)


def echo(order: Order) -> Answer:
    return Answer(f"{order.text(0)} {order.number(1)} {order.texts(2)}")


def measure(order: Order) -> Answer:
    return Answer(os.fstat(order.fd()).st_size)


def lend(order: Order) -> Answer:
    return Answer("a file", os.open(os.devnull, os.O_RDONLY))


def lack(order: Order) -> Answer:
    raise Unusable("no /dev/net/tun", code="G999")


def miss(order: Order) -> Answer:
    raise FileNotFoundError(errno.ENOENT, "No such file or directory", "/dev/uio7")


def run_out(order: Order) -> Answer:
    try:
        raise OSError(errno.EMFILE, "Too many open files")
    except OSError as error:
        raise Unusable("/dev/net/tun: Too many open files") from error


HANDLERS = {
    "echo": echo,
    "measure": measure,
    "lend": lend,
    "lack": lack,
    "miss": miss,
    "run out": run_out,
}


@dataclass(frozen=True)
class Pair:
    """Both ends; the helper is a thread of the test."""

    channel: Channel
    raw: socket.socket
    """The agent's end, to send what no agent would."""
    helper: threading.Thread

    def answer(self, packet: bytes, *fds: int) -> dict[str, object]:
        socket.send_fds(self.raw, [packet], list(fds))
        answer: dict[str, object] = json.loads(self.raw.recv(LONGEST))
        return answer


@pytest.fixture
def pair() -> Iterator[Pair]:
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    # For a helper that has ended without an answer.
    ours.setsockopt(socket.SOL_SOCKET, socket.SO_RCVTIMEO, struct.pack("ll", 30, 0))
    helper = threading.Thread(target=serve, args=(theirs, HANDLERS))
    helper.start()
    channel = Channel(ours, "tests")
    yield Pair(channel, ours, helper)
    channel.close()
    helper.join(TIMEOUT)
    assert not helper.is_alive()
    theirs.close()


def test_order_comes_with_its_arguments(pair: Pair) -> None:
    assert pair.channel.ask("echo", "a", 7, ["b"]).value == "a 7 ['b']"


def test_descriptors_go_both_ways(pair: Pair, tmp_path: os.PathLike[str]) -> None:
    file = os.open(os.path.join(tmp_path, "file"), os.O_RDWR | os.O_CREAT)
    os.write(file, b"12345")
    assert pair.channel.ask("measure", fd=file).value == 5
    os.close(file)
    answer = pair.channel.ask("lend")
    assert answer.fd is not None
    os.close(answer.fd)


def test_what_is_unusable_is_so_for_the_agent(pair: Pair) -> None:
    with pytest.raises(Unusable, match="no /dev/net/tun") as error:
        pair.channel.ask("lack")
    assert error.value.code == "G999"


def test_refusal_of_the_kernel_keeps_its_number_and_file(pair: Pair) -> None:
    with pytest.raises(FileNotFoundError) as refusal:
        pair.channel.ask("miss")
    assert refusal.value.filename == "/dev/uio7"


def test_helper_without_descriptors_says_that(pair: Pair) -> None:
    """The agent then tries again later, as it does for its own lack of them."""
    with pytest.raises(OSError, match="Too many open files"):
        pair.channel.ask("run out")


def test_agent_without_room_for_a_descriptor_says_that() -> None:
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    channel = Channel(ours, "tests")
    socket.send_fds(theirs, [b'{"value": "a file"}'], [0])
    _, hard = before = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (0, hard))
    try:
        with pytest.raises(OSError, match="Too many open files"):
            channel.ask("lend")
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, before)
    channel.close()
    theirs.close()


def test_helper_that_has_ended_is_an_error_that_says_so() -> None:
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    theirs.close()
    channel = Channel(ours, "binds devices")
    with pytest.raises(Unusable, match="that binds devices has ended: restart"):
        channel.ask("echo")
    channel.close()


HOSTILE = [
    b"\xff",
    b"[" * 60000,
    b"{}",
    b"7",
    b'{"echo": 1}',
    b"[]",
    b"[7]",
    b'["fly"]',
    b'["echo"]',
    b'["echo", 1, 2, []]',
    b'["echo", "a", true, []]',
    b'["echo", "a", -1, []]',
    b'["echo", "a", 4294967296, []]',
    b'["echo", "a", 1, [1]]',
    b'["echo", "a\\u0000b", 1, []]',
    b'["measure"]',
]


@pytest.mark.parametrize("packet", HOSTILE)
def test_order_that_makes_no_sense_is_refused(pair: Pair, packet: bytes) -> None:
    assert pair.answer(packet)["errno"] == errno.EPERM
    assert pair.channel.ask("echo", "a", 7, []).value == "a 7 []"


def test_order_that_is_too_long_is_refused(pair: Pair) -> None:
    said = pair.answer(json.dumps(["echo", "a" * LONGEST, 1, []]).encode())
    assert "too long" in str(said["text"])


@pytest.mark.parametrize("count", [2, 3])
def test_order_with_too_many_descriptors_is_refused(pair: Pair, count: int) -> None:
    before = os.listdir("/proc/self/fd")
    said = pair.answer(b'["measure"]', *[0] * count)
    assert said["errno"] == errno.EPERM
    assert os.listdir("/proc/self/fd") == before


@given(st.lists(st.one_of(st.none(), st.text(), st.integers(), st.lists(st.text()))))
@settings(max_examples=50)
def test_any_argument_is_taken_or_refused(words: list[object]) -> None:
    order = Order("echo", words, [])
    for index in range(4):
        for read in (order.text, order.number, order.texts):
            try:
                read(index)
            except BadOrder:
                continue

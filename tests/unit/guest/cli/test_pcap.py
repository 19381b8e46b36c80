# SPDX-License-Identifier: Apache-2.0
"""`pcap`: a file that another program reads, whole after every mishap."""

import errno
import fcntl
import io
import os
import signal
import subprocess
import sys
import termios
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from struct import pack
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pcapng import FileScanner  # type: ignore[import-untyped]

from tests.waiting import TIMEOUT, wait_for
from vhostpci_guest.cli import pcapng
from vhostpci_guest.cli.main import main
from vhostpci_guest.cli.pcap import Output
from vhostpci_guest.errors import Unusable

# python-pcapng warns of its own table of options.
pytestmark = pytest.mark.filterwarnings("ignore:Field type:DeprecationWarning")

TIME = 1_700_000_000_123_456_789


def blocks(data: bytes) -> list[Any]:
    return list(FileScanner(io.BytesIO(data)))


def test_file_is_read_by_another_program() -> None:
    frame = bytes(range(63))
    section, interface, packet, end = blocks(
        pcapng.section("vhostpci-guest 1")
        + pcapng.interface("web-rx0", "vring 0", 100)
        + pcapng.packet(0, TIME, frame, 99, pcapng.OUTBOUND, "a comment")
        + pcapng.statistics(0, TIME, 7, 3, "of both")
    )
    assert section.options["shb_userappl"] == "vhostpci-guest 1"
    assert (interface.link_type, interface.snaplen) == (1, 100)
    assert interface.options["if_name"] == "web-rx0"
    assert (packet.packet_data, packet.packet_len) == (frame, 99)
    assert abs(packet.timestamp - TIME / 1e9) < 1e-5
    assert packet.options["opt_comment"] == "a comment"
    assert packet.options["epb_flags"].inout == "outbound"
    assert (end.options["isb_ifrecv"], end.options["isb_ifdrop"]) == (7, 3)


@given(st.binary(max_size=12))
def test_any_header_is_printable(header: bytes) -> None:
    assert pcapng.header_text(header).isprintable()


@pytest.mark.parametrize(
    ("header", "text"),
    [
        (bytes(12), ""),
        (bytes(10) + b"\1\0", ""),
        (
            pack("<BBHHHHH", 1, 1, 66, 1448, 34, 16, 2),
            "virtio-net flags=NEEDS_CSUM csum_start=34 csum_offset=16 gso=TCPV4 "
            "gso_size=1448 hdr_len=66 num_buffers=2",
        ),
        (
            pack("<BBHHHH", 2, 0x84, 0, 9, 0, 0),
            "virtio-net flags=DATA_VALID gso=TCPV6|ECN gso_size=9",
        ),
        (
            pack("<BBHHHH", 0x80, 0x7F, 0, 0, 0, 0),
            "virtio-net flags=bit 7 gso=type 127 gso_size=0",
        ),
    ],
)
def test_header_is_named(header: bytes, text: str) -> None:
    assert pcapng.header_text(header) == text


def test_full_disk_leaves_a_file_of_whole_blocks(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "a.pcapng"
    whole = pcapng.section("x")
    block = pcapng.interface("a", "b", 100)

    def fill_up(fd: int, data: memoryview) -> int:
        if len(data) < len(block):
            raise OSError(errno.ENOSPC, "No space left on device")
        return write(fd, data[:5])

    write = os.write
    with ExitStack() as undo:
        output = Output(str(path), undo)
        output.write(whole)
        monkeypatch.setattr(os, "write", fill_up)
        with pytest.raises(Unusable, match=f"after {len(whole)} bytes; it is valid"):
            output.write(block)
    assert path.read_bytes() == whole


def test_device_that_is_full_is_an_error() -> None:
    with ExitStack() as undo:
        output = Output("/dev/full", undo)
        with pytest.raises(Unusable, match="cannot write /dev/full: no space"):
            output.write(b"block")


def test_capture_is_for_no_other_user(tmp_path: Path) -> None:
    path = tmp_path / "a.pcapng"
    with ExitStack() as undo:
        Output(str(path), undo)
    assert path.stat().st_mode & 0o077 == 0


def test_terminal_gets_no_capture(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr("os.isatty", lambda _fd: True)
    with open(os.devnull) as nothing:
        monkeypatch.setattr("sys.stdout", nothing)
        assert main(["pcap", "web"]) == 2
    assert "-w FILE" in caplog.text


CAPTURE = """
import os, socket, sys, time
from argparse import Namespace
from contextlib import ExitStack
from vhostpci_guest.cli import pcap
from vhostpci_guest.dataplane.capture_reader import Packet

class Reader:
    lost = 0

    def read(self):
        for _ in range(100):
            yield Packet(time.time_ns(), 9012, 0, bytes(12), b"x" * 9000)

os.set_blocking(1, sys.argv[1] == "blocking")
ours, _theirs = socket.socketpair()
with ExitStack() as undo:
    output = pcap.Output("-", undo)
    arguments = Namespace(count=None, snaplen=65535, ring=None)
    pcap._Capture(output, "web", [Reader()], arguments).run(ours)
"""
"""Captures packets, more than anything reads, until a signal."""


@contextmanager
def capture_that_waits(way: str = "blocking") -> Iterator[subprocess.Popen[bytes]]:
    """Give a capture whose pipe is full."""
    line = [sys.executable, "-c", CAPTURE, way]
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
    with subprocess.Popen(line, **pipes) as capture:  # type: ignore[call-overload]
        try:
            wait_for(lambda: waiting(capture) > FULL, "the pipe is full")
            yield capture
        finally:
            capture.kill()


FULL = 40_000
"""Bytes; a pipe has room for 16 pieces of a block, of 4096 bytes at most."""


def waiting(capture: "subprocess.Popen[bytes]") -> int:
    """Return how many bytes nothing has read yet."""
    assert capture.stdout is not None
    data = fcntl.ioctl(capture.stdout, termios.FIONREAD, bytes(4))
    return int.from_bytes(data, sys.byteorder)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_signal_ends_a_capture_that_nothing_reads(number: signal.Signals) -> None:
    with capture_that_waits() as capture:
        capture.send_signal(number)
        assert capture.wait(TIMEOUT) == 1
        assert capture.stderr is not None
        assert b"cannot write -: nothing reads it after" in capture.stderr.read()


@pytest.mark.parametrize("way", ["blocking", "non-blocking"])
def test_reader_that_reads_late_has_whole_blocks(way: str) -> None:
    with capture_that_waits(way) as capture:
        capture.send_signal(signal.SIGTERM)
        data, errors = capture.communicate(timeout=TIMEOUT)
    assert (capture.returncode, errors) == (0, b"")
    *_, packet, _rx, _tx = blocks(data)
    assert packet.packet_data == b"x" * 9000

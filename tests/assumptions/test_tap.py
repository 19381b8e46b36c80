# SPDX-License-Identifier: Apache-2.0
"""What the ring driver and the agent need of Linux's TAP.

test ──readv/writev──► /dev/net/tun ── tap0 (a separate network namespace)
"""

import errno
import fcntl
import os
import select
import struct
import subprocess
from collections.abc import Iterator

import pytest

from tests.fakes.netns import private_network
from tests.fakes.tap import (
    HEADER,
    TUN_F_CSUM,
    TUN_F_TSO4,
    TUNSETCARRIER,
    TUNSETOFFLOAD,
    open_tap,
)
from tests.waiting import TIMEOUT

pytestmark = pytest.mark.process

GSO_TCPV4 = 1

PLAIN = HEADER.pack(0, 0, 0, 0, 0, 0, 0)
FRAME = b"\xff" * 6 + b"\x02\0\0\0\0\x01" + b"\x88\xb5" + bytes(86)


@pytest.fixture
def tap() -> Iterator[int]:
    """Yield a TAP queue with 12-byte virtio-net headers; its interface is down."""
    with private_network():
        fd = open_tap("tap0")
        try:
            yield fd
        finally:
            os.close(fd)


def ip(*words: str) -> str:
    return subprocess.run(
        ["ip", *words], check=True, capture_output=True, text=True
    ).stdout


def test_write_to_an_interface_that_is_down_fails_with_eio(tap: int) -> None:
    """So the ring driver drops the packet, and continues."""
    with pytest.raises(OSError, match=os.strerror(errno.EIO)):
        os.writev(tap, [PLAIN, FRAME])


@pytest.mark.parametrize(
    "header",
    [
        HEADER.pack(0, GSO_TCPV4, 54, 0, 0, 0, 0),
        HEADER.pack(1, 0, 0, 0, 5000, 5000, 0),
        HEADER.pack(0, 77, 0, 1000, 0, 0, 0),
    ],
    ids=["gso size 0", "checksum past the packet", "unknown gso type"],
)
def test_impossible_header_fails_with_einval_and_the_next_packet_passes(
    tap: int, header: bytes
) -> None:
    """So the ring driver leaves the check to the kernel, which reads a header once."""
    ip("link", "set", "tap0", "up")
    with pytest.raises(OSError, match=os.strerror(errno.EINVAL)):
        os.writev(tap, [header, FRAME])
    assert os.writev(tap, [PLAIN, FRAME]) == HEADER.size + len(FRAME)


def test_read_into_too_little_room_loses_the_rest(tap: int) -> None:
    """So the ring driver always reads into room behind the master's buffers, too."""
    ip("link", "set", "tap0", "up")
    assert select.select([tap], [], [], TIMEOUT)[0], "no packet of the kernel's own"
    small = bytearray(HEADER.size + 20)
    assert os.readv(tap, [small]) == len(small)


def test_carrier_follows_the_ioctl(tap: int) -> None:
    ip("link", "set", "tap0", "up")
    fcntl.ioctl(tap, TUNSETCARRIER, struct.pack("i", 0))
    assert "NO-CARRIER" in ip("link", "show", "tap0")
    fcntl.ioctl(tap, TUNSETCARRIER, struct.pack("i", 1))
    assert "NO-CARRIER" not in ip("link", "show", "tap0")


def test_offloads_change_while_the_interface_is_up(tap: int) -> None:
    """So a driver that is loaded again may negotiate other offloads."""
    ip("link", "set", "tap0", "up")
    fcntl.ioctl(tap, TUNSETOFFLOAD, TUN_F_CSUM | TUN_F_TSO4)
    fcntl.ioctl(tap, TUNSETOFFLOAD, 0)
    with pytest.raises(OSError, match=os.strerror(errno.EINVAL)):
        fcntl.ioctl(tap, TUNSETOFFLOAD, TUN_F_TSO4)

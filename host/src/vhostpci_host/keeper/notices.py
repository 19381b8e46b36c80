# SPDX-License-Identifier: Apache-2.0
"""The texts by which a daemon speaks to its keeper: those of sd_notify(3).

A notice is one datagram with lines `NAME=VALUE`, and with descriptors beside it if it
is to be kept.  systemd has the same texts, so a daemon needs to know only one protocol.
The keeper's process imports this module and no other one of ours.
"""

import array
import socket
from collections.abc import Mapping

CHANNEL = "VHOSTPCI_KEEPER"
"""The environment variable with the number of the socket to our own keeper."""
FIRST = "VHOSTPCI_FIRST"
"""The environment variable by which the keeper learns of the first daemon: its process
ID and the number of the socket to it, `PID:NUMBER`."""
MAX_NOTICE = 4096
MOST_FDS = 253
"""Descriptors in one datagram (SCM_MAX_FD in the kernel)."""

READY = "READY=1"
STOPPING = "STOPPING=1"
ALIVE = "WATCHDOG=1"
BARRIER = "BARRIER=1"

HEIR = "VHOSTPCI_HEIR"
"""The environment variable of a daemon that is to wait until another one has ended."""
WAITS = "HEIR=1"
"""Such a daemon has all its programs, and waits for what the other one leaves."""
NO_HEIR = b"HEIR=0"
"""The keeper tells the present daemon that the next one has not started."""
GO = "GO=1"
"""The keeper has given it everything."""

# The statuses with which a daemon ends under our keeper.  A traceback has 1 in Python,
# as any failure that was explained: the daemon turns it into FAILED for the keeper.
EXPLAINED = frozenset({0, 1, 2})
"""It ended by itself, and has said why: the keeper ends, too."""
FAILED = 70
"""It has failed in a way that was not foreseen: its successor goes on."""
HANDED_OVER = 75
"""It was asked to make room for its successor, and has closed nothing."""

USELESS = 2
"""Daemons that died before they were ready, after which nothing is kept any more."""


def keep(name: str) -> str:
    """Return the notice to keep the descriptor that comes with it as `name`."""
    # FDPOLL=0: else systemd drops a connection whose other end has hung up, and the
    # successor could not tell that from one that was never kept.
    return f"FDSTORE=1\nFDNAME={name}\nFDPOLL=0"


def forget(name: str) -> str:
    """Return the notice to close what is kept as `name`."""
    return f"FDSTOREREMOVE=1\nFDNAME={name}"


def status(text: str) -> str:
    """Return the notice that shows `text` in `systemctl status`."""
    return f"STATUS={text}"


def parse(notice: bytes) -> Mapping[str, str]:
    """Return the values of a notice by name; what is no line of one is left out."""
    lines = notice.decode(errors="replace").splitlines()
    pairs = (line.partition("=") for line in lines)
    return {name: value for name, equals, value in pairs if equals}


# System calls: recvmsg.
def receive(channel: socket.socket) -> tuple[bytes, list[int]]:
    """Return the next notice, and the descriptors with it; nothing at its end.

    Raises:
        BlockingIOError: none has come.
    """
    room = socket.CMSG_LEN(MOST_FDS * array.array("i").itemsize)
    data, ancillary, _, _ = channel.recvmsg(MAX_NOTICE, room, socket.MSG_CMSG_CLOEXEC)
    fds = [fd for *_, rights in ancillary for fd in array.array("i", rights)]
    return data, fds

# SPDX-License-Identifier: Apache-2.0
"""ivshmem messages on a socket: each with at most one descriptor; we only send."""

import array
import contextlib
import fcntl
import socket
import termios

from vhostpci_shared import ivshmem

from .peers import Outgoing


def is_process(connection: socket.socket) -> bool:
    """Whether an ivshmem client is an agent itself, and no QEMU.

    An agent gives its socket a name before it connects; QEMU never does.
    """
    return bool(connection.getpeername())


def send_outgoing(connection: socket.socket, outgoing: Outgoing) -> None:
    """Send one ivshmem message in a sendmsg() of its own, as QEMU needs it.

    Raises:
        BlockingIOError: the buffer is full; it has not been sent.
        EOFError: the other side is gone.
        OSError: ETOOMANYREFS, if too many descriptors are under way.
    """
    ancillary = []
    if outgoing.fd is not None:
        fds = array.array("i", [outgoing.fd.fileno()])
        ancillary = [(socket.SOL_SOCKET, socket.SCM_RIGHTS, fds)]
    data = ivshmem.encode(outgoing.message)
    try:
        connection.sendmsg([data], ancillary, socket.MSG_NOSIGNAL)
    except ConnectionError as error:
        raise EOFError(str(error)) from error


def send_last(connection: socket.socket, messages: list[Outgoing]) -> None:
    """Send the last messages that this peer gets, if it takes them."""
    with contextlib.suppress(EOFError, BlockingIOError):
        for outgoing in messages:
            send_outgoing(connection, outgoing)


def has_unread(connection: socket.socket) -> bool:
    """Whether the other side has not read all that we sent."""
    queued = array.array("i", [0])
    fcntl.ioctl(connection.fileno(), termios.TIOCOUTQ, queued)  # SIOCOUTQ
    return queued[0] > 0

# SPDX-License-Identifier: Apache-2.0
"""Send ivshmem messages on a socket: each is 8 bytes with at most one descriptor."""

import array
import contextlib
import socket

from vhostpci_shared import ivshmem

from .peers import Outgoing


def is_process(connection: socket.socket) -> bool:
    """Whether the ivshmem client is an agent process, and not a QEMU."""
    # An agent binds its socket to an abstract name before it connects; QEMU never does.
    return bool(connection.getpeername())


def takes_kicks(connection: socket.socket) -> bool:
    """Whether the client is an agent that takes kicks as the vectors of a peer."""
    name = connection.getpeername()
    return isinstance(name, bytes) and name.startswith(ivshmem.TAKES_KICKS)


def send_outgoing(connection: socket.socket, outgoing: Outgoing) -> None:
    """Send one ivshmem message.

    Raises:
        BlockingIOError: the socket's buffer is full; the message was not sent.
        EOFError: the client has closed the connection.
        OSError: ETOOMANYREFS, if too many descriptors are in flight.
    """
    ancillary = []
    if outgoing.fd is not None:
        fds = array.array("i", [outgoing.fd.fileno()])
        ancillary = [(socket.SOL_SOCKET, socket.SCM_RIGHTS, fds)]
    data = ivshmem.encode(outgoing.message)
    try:
        # One sendmsg() for each descriptor: of several in one sendmsg(), QEMU uses the
        # first and closes the others.  Eight bytes are sent whole or not at all.
        connection.sendmsg([data], ancillary, socket.MSG_NOSIGNAL)
    except ConnectionError as error:
        raise EOFError(str(error)) from error


def send_last(connection: socket.socket, messages: list[Outgoing]) -> None:
    """Send the last messages that a client gets; drop those that it does not take."""
    with contextlib.suppress(EOFError, BlockingIOError):
        for outgoing in messages:
            send_outgoing(connection, outgoing)

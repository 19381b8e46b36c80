# SPDX-License-Identifier: Apache-2.0
"""vhost-user messages on a socket: bytes and descriptors in, bytes out."""

import array
import errno
import os
import socket

from vhostpci_shared import vhost_user as vu
from vhostpci_shared.wire import ProtocolError

from ..fds import Fd
from .message import Message


class MessageReader:
    """Puts vhost-user messages together from what a connection has to read.

    A message is read in its own pieces and never beyond its end: so descriptors that
    come with a piece are the message's.
    """

    def __init__(self, connection: socket.socket) -> None:
        self._connection = connection
        self._data = b""
        self._header: vu.Header | None = None
        self._fds: list[Fd] = []

    def read(self) -> Message | None:
        """Return the next message; None if it is not all there yet.

        Raises:
            EOFError: the front-end is gone.
            ProtocolError: this is no vhost-user message.
        """
        while (missing := self._missing()) > 0:
            try:
                self._receive(missing)
            except BlockingIOError:
                return None
        header, payload, fds = self._header, self._data, self._fds
        assert header is not None, "a message without a header"
        self._header, self._data, self._fds = None, b"", []
        return Message(header, payload, fds)

    def close(self) -> None:
        """Close the descriptors of a message that will never be whole."""
        while self._fds:
            self._fds.pop().close()

    def _missing(self) -> int:
        """Return how many bytes are missing, of the header and then the payload."""
        size = vu.Header.layout.size
        if self._header is None and len(self._data) == size:
            self._header, self._data = vu.Header.parse(self._data), b""
        wanted = size if self._header is None else self._header.size
        # A header has to be looked at even if it is the whole message.
        return wanted - len(self._data)

    def _receive(self, size: int) -> None:
        data, fds = receive(self._connection, size)
        self._fds += fds
        if not data:
            raise EOFError("the front-end is gone")
        self._data += data
        if len(self._fds) > vu.MAX_FDS:
            raise ProtocolError(f"more than {vu.MAX_FDS} descriptors in one message")


def receive(connection: socket.socket, size: int) -> tuple[bytes, list[Fd]]:
    """Read up to `size` bytes, and the descriptors beside them, which are ours.

    Raises:
        BlockingIOError: there is nothing yet.
        EOFError: the other side is gone.
        ProtocolError: there were more descriptors than any message has.
        OSError: EMFILE, if we can have no more of them.
    """
    # Not socket.recv_fds(): Python 3.11's drops its flags.
    room = socket.CMSG_LEN(vu.MAX_FDS * array.array("i").itemsize)
    try:
        data, ancillary, flags, _ = connection.recvmsg(
            size, room, socket.MSG_CMSG_CLOEXEC
        )
    except ConnectionError as error:
        raise EOFError(str(error)) from error
    fds = [Fd(number) for _, _, rights in ancillary for number in _ints(rights)]
    if flags & socket.MSG_CTRUNC:
        for fd in fds:
            fd.close()
        if len(fds) < vu.MAX_FDS:  # there was room: Linux had no number to give
            raise OSError(errno.EMFILE, os.strerror(errno.EMFILE))
        raise ProtocolError(f"more than {vu.MAX_FDS} descriptors in one message")
    return data, fds


def _ints(rights: bytes) -> list[int]:
    """Return the numbers in an SCM_RIGHTS, the only kind that we are sent."""
    return array.array("i", rights).tolist()


def send(connection: socket.socket, data: bytes) -> None:
    """Send a reply, which is small enough for any socket buffer.

    Raises:
        EOFError: the other side is gone.
        ProtocolError: it does not read what we send.
    """
    try:
        sent = connection.send(data, socket.MSG_NOSIGNAL)
    except BlockingIOError:
        sent = 0
    except ConnectionError as error:
        raise EOFError(str(error)) from error
    if sent < len(data):
        raise ProtocolError("it does not read our replies")

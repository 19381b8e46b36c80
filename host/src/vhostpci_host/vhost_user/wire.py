# SPDX-License-Identifier: Apache-2.0
"""Read vhost-user messages with descriptors from a socket, and send replies."""

import array
import errno
import os
import socket

from vhostpci_shared import vhost_user as vu
from vhostpci_shared.wire import ProtocolError

from ..fds import Fd
from .message import Message


class MessageReader:
    """Put vhost-user messages together from the pieces that a socket delivers."""

    def __init__(self, connection: socket.socket) -> None:
        self._connection = connection
        self._data = b""
        self._header: vu.Header | None = None
        self._fds: list[Fd] = []

    def read(self) -> Message | None:
        """Return the next message; None if a part of it has not arrived yet.

        Raises:
            EOFError: the front-end has closed the connection.
            ProtocolError: the bytes are not a vhost-user message.
            OSError: EMFILE, if there is no number left for a descriptor.
        """
        # Never read beyond the end of this message: Linux delivers descriptors with the
        # first byte that they were sent with, so those that come now belong to it.
        while (missing := self._missing()) > 0:
            try:
                self._receive(missing)
            except BlockingIOError:
                return None
        header, payload, fds = self._header, self._data, self._fds
        assert header is not None, "a message without a header"
        self._header, self._data, self._fds = None, b"", []
        return Message(header, payload, fds)

    @property
    def in_message(self) -> bool:
        """Whether a part of a message has arrived, and the rest has not."""
        return bool(self._data) or self._header is not None

    def close(self) -> None:
        """Close the descriptors of a message that has arrived in part."""
        while self._fds:
            self._fds.pop().close()

    def _missing(self) -> int:
        """Return how many bytes are missing, of the header and then the payload."""
        size = vu.Header.layout.size
        if self._header is None and len(self._data) == size:
            self._header, self._data = vu.Header.parse(self._data), b""
        wanted = size if self._header is None else self._header.size
        # A header without a payload is a whole message: nothing is missing then.
        return wanted - len(self._data)

    def _receive(self, size: int) -> None:
        data, fds = receive(self._connection, size)
        # Keep the descriptors before anything can fail here: `close` closes them then.
        self._fds += fds
        if not data:
            raise EOFError("the front-end is gone")
        self._data += data
        # `receive` bounds the descriptors of one piece; this bounds their sum.
        if len(self._fds) > vu.MAX_FDS:
            raise ProtocolError(
                f"more than {vu.MAX_FDS} descriptors in one message", code="P058"
            )


def receive(
    connection: socket.socket, size: int, flags: int = 0
) -> tuple[bytes, list[Fd]]:
    """Read up to `size` bytes, and the descriptors with them, which the caller owns.

    Args:
        connection: the socket.
        size: in bytes.
        flags: MSG_PEEK leaves them in the socket.

    Raises:
        BlockingIOError: nothing has arrived.
        EOFError: the connection is broken.
        ProtocolError: more descriptors came than any message has.
        OSError: EMFILE, if there is no number left for a descriptor.
    """
    # Not socket.recv_fds(): Python 3.11's ignores its flags, and without
    # MSG_CMSG_CLOEXEC a descriptor stays open across exec().
    room = socket.CMSG_LEN(vu.MAX_FDS * array.array("i").itemsize)
    try:
        data, ancillary, flags, _ = connection.recvmsg(
            size, room, socket.MSG_CMSG_CLOEXEC | flags
        )
    except ConnectionError as error:
        raise EOFError(str(error)) from error
    fds = [Fd(number) for _, _, rights in ancillary for number in _ints(rights)]
    if flags & socket.MSG_CTRUNC:
        # Linux has dropped some of the descriptors, so the message is not usable.
        for fd in fds:
            fd.close()
        # With room left in the buffer, Linux had no number to give the next one.
        if len(fds) < vu.MAX_FDS:
            raise OSError(errno.EMFILE, os.strerror(errno.EMFILE))
        raise ProtocolError(
            f"more than {vu.MAX_FDS} descriptors in one message", code="P059"
        )
    return data, fds


def _ints(rights: bytes) -> list[int]:
    """Return the descriptors' numbers in the data of an SCM_RIGHTS message."""
    return array.array("i", rights).tolist()


def send(connection: socket.socket, data: bytes) -> None:
    """Send a reply.

    Raises:
        EOFError: the front-end has closed the connection.
        ProtocolError: the front-end does not read the replies.
    """
    # A reply has some 20 bytes, and a front-end waits for one before it asks for the
    # next.  A buffer that is full of replies means that none of them is being read.
    try:
        sent = connection.send(data, socket.MSG_NOSIGNAL)
    except BlockingIOError:
        sent = 0
    except ConnectionError as error:
        raise EOFError(str(error)) from error
    if sent < len(data):
        raise ProtocolError("it does not read our replies", code="P060")

# SPDX-License-Identifier: Apache-2.0
"""Read messages that stay in the socket until they are served.

Theory of operation.  With a keeper, a daemon may be killed while it serves a message,
and the front-end must not notice it.  So the message is looked at first, served, the
state is written that is the result, and only then is it taken out of the socket::

    peek ─► serve ─► state with the reply ─► take it out ─► mark ─► send reply ─► mark

A successor finds a message that was not served in the socket, and serves it.  One that
was served, and is still there, it knows by its fingerprint.

Linux shows the descriptors of a later message, too, where a message has none.  So what
belongs to a message is what its request says, and is compared when it is taken out.

A message that arrives in pieces cannot be looked at as a whole: Linux looks no further
than the first descriptors.  It is read piece by piece, which a mark says: a successor
drops a front-end of which a part of a message was read.
"""

import hashlib
import socket

from vhostpci_shared import vhost_user as vu
from vhostpci_shared.vhost_user import Request
from vhostpci_shared.wire import ProtocolError

from ..fds import identity
from ..keeper.shelf import Shelf
from ..keeper.slots import Mark
from .message import Message
from .wire import MessageReader, receive


class PeekReader:
    """Reads messages as `MessageReader` does, and leaves each until `consume`.

    Args:
        connection: the front-end's socket.
        shelf: has the mark for a message in pieces.
    """

    def __init__(self, connection: socket.socket, shelf: Shelf) -> None:
        self._connection = connection
        self._shelf = shelf
        self._pieces = MessageReader(connection)
        self._left = self._request = self._fds = 0
        self.fingerprint = ""
        """Of the message that `read` returned last."""

    def read(self) -> Message | None:
        """Return the next message; None if a part of it has not arrived yet.

        Raises:
            EOFError: the front-end has closed the connection.
            ProtocolError: the bytes are not a vhost-user message.
            OSError: EMFILE, if there is no number left for a descriptor.
        """
        assert not self._left, "the last message is still in the socket"
        if not self._pieces.in_message:
            try:
                message = self._peek()
            except BlockingIOError:
                return None
            if message is not None:
                return message
            self._shelf.set_mark(Mark.IN_PIECES, 1)
        found = self._pieces.read()
        if found is not None:
            self.fingerprint = fingerprint(found)
        return found

    def _peek(self) -> Message | None:
        """Look at the next message; None if only a part of it can be seen."""
        layout = vu.Header.layout
        try:
            head = self._connection.recv(layout.size, socket.MSG_PEEK)
        except ConnectionError as error:
            raise EOFError(str(error)) from error
        if not head:
            raise EOFError("the front-end is gone")
        if len(head) < layout.size:
            return None
        header = vu.Header.parse(head)
        size = layout.size + header.size
        data, fds = receive(self._connection, size, socket.MSG_PEEK)
        message = Message(header, data[layout.size :], fds)
        if len(data) < size:
            message.close()
            return None
        if not _has_descriptors(message):
            # Linux shows those of a later message where this one has none.
            message.close()
        self._left, self._request, self._fds = size, header.request, len(message.fds)
        self.fingerprint = fingerprint(message)
        return message

    @property
    def in_message(self) -> bool:
        """Whether a part of a message has arrived, and the rest has not."""
        return self._pieces.in_message

    def consume(self) -> None:
        """Take the message out of the socket: it is served.

        Raises:
            ProtocolError: it came with other descriptors than it should have.
        """
        came = 0
        while self._left:
            data, fds = receive(self._connection, self._left)
            came += len(fds)
            for fd in fds:
                fd.close()
            self._left -= len(data) or self._left
        wrong = came != self._fds and self._request != Request.REM_MEM_REG
        self._fds = 0
        self._shelf.set_mark(Mark.IN_PIECES, 0)
        if wrong:
            raise ProtocolError(
                f"{came} descriptors with request {self._request}", code="P051"
            )

    def skip(self, served: str) -> None:
        """Take the next message out if it is the one that was served already."""
        try:
            message = self._peek()
        except (BlockingIOError, EOFError, ProtocolError):
            return  # `read` finds it again
        if message is None:
            return
        message.close()
        if self.fingerprint == served:
            self.consume()
        self._left = self._fds = 0

    def close(self) -> None:
        """Close the descriptors of a message that has arrived in part."""
        self._pieces.close()


def _has_descriptors(message: Message) -> bool:
    """Whether descriptors belong to a message, as its request and payload say."""
    try:
        request = Request(message.header.request)
        shape = vu.SHAPES[request]
        payload = shape.payload.parse(message.payload)
    except (ValueError, KeyError, ProtocolError):
        return True  # it is refused for another reason
    match payload:
        case vu.VringFd(nofd=nofd):
            return not nofd
        case vu.MemTable(regions=regions):
            return bool(regions)
    # QEMU 5 and 6 send one with REM_MEM_REG, which has no use for it.
    return shape.max_fds > 0 and request is not Request.REM_MEM_REG


def fingerprint(message: Message) -> str:
    """Return a text that is the same for the same bytes with the same descriptors."""
    found = hashlib.blake2b(digest_size=16)
    header = message.header
    found.update(vu.Header.layout.pack(header.request, header.flags, header.size))
    found.update(message.payload)
    for fd in message.fds:
        found.update(repr(identity(fd)).encode())
    return found.hexdigest()

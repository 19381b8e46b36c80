# SPDX-License-Identifier: Apache-2.0
"""The bytes of one back-end's connection: messages out with descriptors, replies in.

Nothing here waits.  What does not fit into the socket waits in a queue, and a reply
that has arrived in part is put together over several calls.
"""

import array
import select
import socket
import struct
from collections import deque
from collections.abc import Sequence
from contextlib import suppress

from vhostpci_shared import vhost_user as vu
from vhostpci_shared.wire import ProtocolError

_CREDENTIALS = struct.Struct("iII")  # struct ucred: pid, uid, gid


class Connection:
    """Sends requests to one back-end, and reads its replies.

    Args:
        connection: it never blocks, and is ours to close.
    """

    def __init__(self, connection: socket.socket) -> None:
        self._socket = connection
        self._out: deque[tuple[bytes, Sequence[int]]] = deque()
        self._data = b""
        self._header: vu.Header | None = None
        self.pid = _peer_pid(connection)
        """The back-end's process; 0 if it is of another PID namespace."""

    def fileno(self) -> int:
        return self._socket.fileno()

    @property
    def unsent(self) -> bool:
        """Whether something waits until the socket has room."""
        return bool(self._out)

    def send(self, data: bytes, fds: Sequence[int] = ()) -> None:
        """Send a message, now or by a later `flush`; `fds` stay open until then.

        Raises:
            EOFError: the back-end is gone.
        """
        self._out.append((data, fds))
        self.flush()

    def flush(self) -> None:
        """Send what waits.

        Raises:
            EOFError: the back-end is gone, or takes no more descriptors.
        """
        while self._out:
            data, fds = self._out[0]
            rights = [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", fds))]
            try:
                sent = self._socket.sendmsg(
                    [data], rights if fds else [], socket.MSG_NOSIGNAL
                )
            except BlockingIOError:
                return
            except OSError as error:
                # ETOOMANYREFS too: too many descriptors are under way already.
                raise EOFError(error.strerror) from error
            self._out.popleft()
            if sent < len(data):
                # The descriptors went with the first byte.
                self._out.appendleft((data[sent:], ()))

    def read(self) -> tuple[vu.Header, bytes] | None:
        """Return the next message; None if a part of it has not arrived yet.

        Raises:
            EOFError: the back-end has closed the connection.
            ProtocolError: the bytes are no reply, or descriptors came with them.
        """
        # Never beyond the end of this message: what follows is the next one's.
        while (missing := self._missing()) > 0:
            try:
                # Without room for descriptors Linux closes those that come, and they
                # never are ours.
                data, _, flags, _ = self._socket.recvmsg(missing)
            except BlockingIOError:
                return None
            except ConnectionError as error:
                raise EOFError(error.strerror) from error
            if flags & socket.MSG_CTRUNC:
                raise ProtocolError(
                    "it sends descriptors, and no reply has any", code="P061"
                )
            if not data:
                raise EOFError("it has closed the connection")
            self._data += data
        header, payload = self._header, self._data
        assert header is not None, "a message without a header"
        self._header, self._data = None, b""
        return header, payload

    def _missing(self) -> int:
        """Return how many bytes are missing, of the header and then the payload."""
        size = vu.Header.layout.size
        if self._header is None and len(self._data) == size:
            header = vu.Header.parse(self._data)
            if not header.flags & vu.HeaderFlag.REPLY:
                raise ProtocolError(
                    f"it sends {header.name}, which is no reply", code="P062"
                )
            self._header, self._data = header, b""
        wanted = size if self._header is None else self._header.size
        # A header without a payload is a whole message: nothing is missing then.
        return wanted - len(self._data)

    def end_sending(self) -> None:
        """Tell the back-end that nothing comes any more; drop what waits."""
        self._out.clear()
        with suppress(OSError):  # it is gone
            self._socket.shutdown(socket.SHUT_WR)

    @property
    def peer_closed(self) -> bool:
        """Whether the other end was closed, after `end_sending`."""
        # Both directions are shut then.  What was sent before may still be unread.
        poll = select.poll()
        poll.register(self._socket, 0)
        return bool(poll.poll(0))

    def close(self) -> None:
        """Close the connection; what waits is not sent."""
        self._out.clear()
        self._socket.close()


def _peer_pid(connection: socket.socket) -> int:
    data = connection.getsockopt(
        socket.SOL_SOCKET, socket.SO_PEERCRED, _CREDENTIALS.size
    )
    pid: int = _CREDENTIALS.unpack(data)[0]
    return pid

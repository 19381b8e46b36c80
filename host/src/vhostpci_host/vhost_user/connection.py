# SPDX-License-Identifier: Apache-2.0
"""A front-end's connection: reads its messages, and sends it replies."""

import logging
import socket
from collections.abc import Callable
from contextlib import suppress

from vhostpci_shared.errors import Said, code_of, said
from vhostpci_shared.vhost_user import Request
from vhostpci_shared.wire import ProtocolError

from .. import sockets
from ..interfaces import Loop
from ..keeper.shelf import Shelf
from ..keeper.slots import Mark, StateError
from ..keeper.store import Keep
from . import wire
from .conversation import Conversation
from .front_end_setup import FrontEndSetup
from .kept import MasterState, capture_setup, reply_of
from .message import Message
from .peek import PeekReader

log = logging.getLogger(__name__)

SILENT = 5.0
"""Seconds after which a front-end that does not go on is said to hang."""
MESSAGES_AT_ONCE = 16
"""Messages of one front-end that are read before the loop serves others."""
TURN = 0.002
"""Seconds after which none is read either: one that brings many files takes longer."""


class MasterConnection:
    """Read the messages of one front-end, and send it replies (a `MasterPort`).

    Args:
        connection: the socket, which `close` closes.
        pid: the front-end's process, 0 if unknown.
        loop: calls back when there is something to read.
        receive: called with each message.
        closed: called once, when the connection has been closed.
        say_once: logs a warning, unless it repeats the last one.
        returning: whether the process was here lately and did nothing useful.
        shelf: keeps the device; None without a keeper.
        conversation: notes what is said.
    """

    def __init__(
        self,
        connection: socket.socket,
        pid: int,
        loop: Loop,
        *,
        receive: Callable[[Message], None],
        closed: Callable[[], None],
        say_once: Callable[[str], None],
        returning: bool = False,
        shelf: Shelf | None = None,
        conversation: Conversation | None = None,
    ) -> None:
        self.pid = pid
        self.returning = returning
        self.dropped = False
        """Whether it was us who ended the connection, for a reason that was logged."""
        self._receive = receive
        self._on_closed = closed
        self._say_once = say_once
        self._loop = loop
        self._conversation = conversation or Conversation("")
        self._conversation.note(f"front-end (pid {pid}) connected")
        self._connection = connection
        self._shelf = shelf
        self._reader: wire.MessageReader | PeekReader = (
            PeekReader(connection, shelf) if shelf else wire.MessageReader(connection)
        )
        # The last message that was served, for a successor, and its reply.
        self._number = shelf.mark(Mark.CONSUMED) if shelf else 0
        self._served, self._reply = "", b""
        self._serving = False
        if shelf is not None:
            shelf.set_mark(Mark.IN_PIECES, 0)
        self._closed = self._paused = False
        self._introduced = self._spoke = False
        # Since when the front-end owes us something: its introduction, or the rest of a
        # message.
        self._owes_since: float | None = loop.time()

    def start(self) -> None:
        """Start to read messages."""
        self._loop.add_reader(self._connection.fileno(), self._readable)

    def _readable(self) -> None:
        try:
            # The rest stays in the socket, and the loop calls back for it.
            end = self._loop.time() + TURN
            for _ in range(MESSAGES_AT_ONCE):
                # `_receive` may have paused or closed the connection.
                message = None if self._busy() else self._reader.read()
                self._note(message)
                if message is None:
                    return
                self._serving = True
                self._conversation.heard(message)
                self._receive(message)
                self._finish()
                if self._loop.time() >= end:
                    return
        except EOFError:
            self.close()
        except ProtocolError as error:
            self.drop(said(error))

    def _note(self, message: Message | None) -> None:
        """Note whether the front-end owes us something now."""
        self._spoke |= message is not None or self._reader.in_message
        if message is not None:
            # Every front-end sends this at once, and may then be quiet for weeks.
            self._introduced |= message.header.request == Request.SET_OWNER
            self._owes_since = None if self._introduced else self._owes_since
        elif self._reader.in_message and self._owes_since is None:
            self._owes_since = self._loop.time()

    @property
    def hangs(self) -> str:
        """How the front-end hangs since `SILENT` seconds; empty if it does not."""
        since = self._owes_since
        if self._paused or since is None or self._loop.time() - since < SILENT:
            return ""
        if not self._spoke:
            return "says nothing: is it a slave's QEMU? Its socket is NAME.ivshmem"
        if self._reader.in_message:
            return "has sent half a message, and does not go on"
        return "does not go on: it has not sent SET_OWNER"

    def give_back(self) -> socket.socket | None:
        """End the connection, and leave its socket to the caller if it is silent."""
        if self._spoke or self._closed:
            self.close()
            return None
        ours = self._connection.dup()
        self._shelf = None  # which would shut the connection down
        self.close()
        return ours

    def _busy(self) -> bool:
        return self._closed or self._paused

    def _finish(self, reply: bytes = b"") -> None:
        """Take a message that is served out of the socket; first keep what it made."""
        if not self._serving or self._busy():
            return
        self._serving = False
        if self._shelf is None or not isinstance(self._reader, PeekReader):
            return
        self._number += 1
        self._served, self._reply = self._reader.fingerprint, reply
        self._shelf.save()
        self._reader.consume()
        self._shelf.set_mark(Mark.CONSUMED, self._number)

    def send(self, data: bytes) -> None:
        """Send a reply; drop a front-end that does not read its replies."""
        # It has to wait no more: `resume` is about to be called.
        paused, self._paused = self._paused, False
        try:
            self._finish(data)
        except (EOFError, ProtocolError) as error:
            self.drop(said(error))
            return
        finally:
            self._paused = paused
        self._reply_now(data)

    def _reply_now(self, data: bytes) -> None:
        """Send a reply, and have a successor not send it again."""
        # The mark comes first.  The front-end may run as soon as it has the reply, in
        # our place, and what it does next may be what gets us killed.
        if self._shelf is not None:
            self._shelf.set_mark(Mark.REPLYING, self._number)
        self._send(data)

    def _send(self, data: bytes) -> None:
        self._conversation.said(data)
        try:
            wire.send(self._connection, data)
        except EOFError:
            self.close()
        except ProtocolError as error:
            self.drop(said(error))

    def pause(self) -> None:
        """Read no further message until `resume`."""
        self._paused = True
        self._loop.remove_reader(self._connection.fileno())

    def resume(self) -> None:
        """Read messages again; a no-op unless the connection is paused."""
        if self._paused and not self._closed:
            self._paused = False
            try:
                self._finish()
            except (EOFError, ProtocolError) as error:
                self.drop(said(error))
                return
            self.start()

    def capture(self, keep: Keep, setup: FrontEndSetup) -> MasterState:
        """Return what a successor needs to go on with the connection."""
        return MasterState(
            socket=keep(self._connection),
            pid=self.pid,
            introduced=self._introduced,
            spoke=self._spoke,
            returning=self.returning,
            number=self._number,
            message=self._served,
            reply=self._reply.hex(),
            setup=capture_setup(setup, keep),
        )

    def restore(self, state: MasterState) -> None:
        """Go on where a daemon before us was killed.

        Raises:
            StateError: the marks do not fit the state.
        """
        shelf, reader = self._shelf, self._reader
        assert shelf is not None, "no keeper"
        assert isinstance(reader, PeekReader), "a reader for a keeper"
        self._introduced, self._spoke = state.introduced, state.spoke
        self._owes_since = None if self._introduced else self._loop.time()
        self._number, self._served = state.number, state.message
        self._reply = reply = reply_of(state)
        consumed = shelf.mark(Mark.CONSUMED)
        if consumed not in (state.number, state.number - 1):
            raise StateError(f"{consumed} messages of {state.number} were read")
        if consumed != state.number:
            # It was served; whether it was read from the socket, only the socket says.
            reader.skip(state.message)
            shelf.set_mark(Mark.CONSUMED, state.number)
        if reply and shelf.mark(Mark.REPLYING) != state.number:
            self._reply_now(reply)

    def hung_up(self) -> bool:
        """Whether the front-end has closed its end, even if that is still unread."""
        return sockets.hung_up(self._connection)

    def drop(self, reason: str) -> None:
        """Log `reason`, and close the connection."""
        self.dropped = True
        self._conversation.note(f"we drop it: {reason}")
        text = f"front-end (pid {self.pid}) dropped: {reason}"
        self._say_once(Said(text, code_of(reason)))
        self.close()

    def close(self) -> None:
        """Close the connection, and call `closed`."""
        # A reply that fails may close the connection while a message of it is being
        # served; tell the device once.
        if self._closed:
            return
        self._closed = True
        self._conversation.note("the connection is closed")
        # Before close(): a closed socket has no number to remove.
        self._loop.remove_reader(self._connection.fileno())
        self._reader.close()
        if self._shelf is not None:
            # The keeper has the socket, too, until the device has told it otherwise.
            with suppress(OSError):
                self._connection.shutdown(socket.SHUT_RDWR)
        self._connection.close()
        self._on_closed()

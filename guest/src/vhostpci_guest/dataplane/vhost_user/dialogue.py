# SPDX-License-Identifier: Apache-2.0
"""Requests and their replies on one connection: which belongs to which, and in time.

Time is counted in ticks, five a second: a VM that was paused has given a back-end no
time to answer.
"""

from collections import deque
from collections.abc import Callable
from dataclasses import dataclass

from vhostpci_shared import vhost_user as vu
from vhostpci_shared.vhost_user import HeaderFlag, Request
from vhostpci_shared.wire import ProtocolError

from .connection import Connection
from .messages import Message

ANSWER = 25
"""Ticks (5 s) for a reply: a back-end may map gigabytes before it answers."""
BASE = 3
"""Ticks (0.4 to 0.6 s) for the reply to GET_VRING_BASE: the daemon waits for 1 s."""
AT_ONCE = 16
"""Replies that are read before the agent serves its other devices."""


@dataclass(slots=True)
class _Pending:
    request: Request
    take: Callable[[bytes], None]
    limit: int
    ticks: int = 0


class Dialogue:
    """Sends requests to a back-end, and calls what waits for their replies.

    Args:
        connection: it stays the caller's.
    """

    def __init__(self, connection: Connection) -> None:
        self._connection = connection
        self._pending: deque[_Pending] = deque()
        self.acknowledges = False
        """Whether the back-end says on demand if it could do something (REPLY_ACK)."""

    def tell(self, message: Message) -> None:
        """Send a request that asks for nothing.

        Raises:
            EOFError: the back-end is gone.
        """
        check = message.checked and self.acknowledges
        if check:
            self._expect(message.request, _check(message.request), ANSWER)
        self._send(message, HeaderFlag.NEED_REPLY if check else HeaderFlag(0))

    def ask(
        self, message: Message, take: Callable[[bytes], None], limit: int = ANSWER
    ) -> None:
        """Send a request; call `take` with the payload of its reply.

        Args:
            message: the request.
            take: may raise ProtocolError.
            limit: in ticks.

        Raises:
            EOFError: the back-end is gone.
        """
        self._expect(message.request, take, limit)
        self._send(message, HeaderFlag(0))

    def _expect(
        self, request: Request, take: Callable[[bytes], None], limit: int
    ) -> None:
        self._pending.append(_Pending(request, take, limit))

    def _send(self, message: Message, flags: HeaderFlag) -> None:
        data = vu.message(message.request, message.payload, flags)
        self._connection.send(data, message.fds)

    def look(self) -> None:
        """Send and read what can be sent and read now.

        Raises:
            EOFError: the back-end is gone.
            ProtocolError: it says what it must not.
        """
        self._connection.flush()
        # The rest stays in the socket, which stays readable.
        for _ in range(AT_ONCE):
            message = self._connection.read()
            if message is None:
                return
            header, payload = message
            self._take(header, payload)

    def _take(self, header: vu.Header, payload: bytes) -> None:
        if not self._pending:
            raise ProtocolError(
                f"it answers {header.name}, and nothing was asked", code="P063"
            )
        waiting = self._pending[0]
        if header.request != waiting.request:
            raise ProtocolError(
                f"it answers {header.name}, and was asked {waiting.request.name}",
                code="P064",
            )
        self._pending.popleft()
        try:
            waiting.take(payload)
        except ProtocolError as why:
            raise ProtocolError(
                f"its answer to {header.name}: {why}", code=why.code
            ) from None

    def tick(self) -> None:
        """Count a tick.

        Raises:
            ProtocolError: a reply is late.
        """
        for waiting in self._pending:
            waiting.ticks += 1
            if waiting.ticks >= waiting.limit:
                raise ProtocolError(
                    f"it has not answered {waiting.request.name} in time", code="P065"
                )


def _check(request: Request) -> Callable[[bytes], None]:
    """Return what takes the reply that says whether a request could be done."""

    def check(payload: bytes) -> None:
        if vu.U64.parse(payload).value:
            raise ProtocolError("it refuses that", code="P066")

    return check

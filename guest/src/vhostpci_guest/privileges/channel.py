# SPDX-License-Identifier: Apache-2.0
"""Orders from the agent to a helper, and the helper's answers.

A helper has privileges, and the agent has none: a master may have taken the agent over.
So the helper treats each order as hostile.  An order is one packet, a JSON list of
texts and numbers, perhaps with descriptors.  A helper does one after the other, and
knows nothing of the order before.  The agent trusts what a helper answers.
"""

import errno
import json
import os
import socket
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from threading import Lock
from typing import Self

from vhostpci_shared.limits import shortage

from ..errors import Unusable

LONGEST = 1 << 16
"""Bytes of an order or an answer."""
MOST_FDS = 2
"""Descriptors that come with one order, or one answer."""

Value = str | int | None | list[str]


class BadOrder(Exception):
    """An order that the agent would not give, so it may be another's: it is refused."""


@dataclass(frozen=True, slots=True)
class Order:
    """What a helper is asked to do; its descriptors are closed when it is done."""

    name: str
    words: Sequence[object]
    fds: Sequence[int]

    def text(self, index: int) -> str:
        """Return an argument that is a text.

        Raises:
            BadOrder: there is none.
        """
        word = self.words[index] if index < len(self.words) else None
        if not isinstance(word, str) or "\0" in word:
            raise BadOrder(f"{self.name}: argument {index} is no text")
        return word

    def texts(self, index: int) -> list[str]:
        """Return an argument that is a list of texts.

        Raises:
            BadOrder: there is none.
        """
        word = self.words[index] if index < len(self.words) else None
        if not isinstance(word, list) or not all(isinstance(one, str) for one in word):
            raise BadOrder(f"{self.name}: argument {index} is no list of texts")
        return [str(one) for one in word]

    def number(self, index: int) -> int:
        """Return an argument that is a number of 32 bits.

        Raises:
            BadOrder: there is none.
        """
        word = self.words[index] if index < len(self.words) else None
        if type(word) is not int or not 0 <= word < 1 << 32:
            raise BadOrder(f"{self.name}: argument {index} is no number")
        return word

    def fd(self) -> int:
        """Return the only descriptor.

        Raises:
            BadOrder: there is none, or more than one.
        """
        if len(self.fds) != 1:
            raise BadOrder(f"{self.name}: it came with {len(self.fds)} descriptors")
        return self.fds[0]


@dataclass(frozen=True, slots=True)
class Answer:
    """What an order gave; a descriptor in it belongs to its receiver."""

    value: Value = None
    fd: int | None = None


Handler = Callable[[Order], Answer]


class Channel:
    """The agent's end: it gives orders, from any thread, and waits for the answers.

    Args:
        sock: a connected socket of packets; ours to close.
        helper: what the helper does, for an error.
    """

    def __init__(self, sock: socket.socket, helper: str) -> None:
        self._socket = sock
        self._helper = helper
        self._lock = Lock()

    def ask(
        self, name: str, *words: str | int | list[str], fd: int | None = None
    ) -> Answer:
        """Give an order; return the answer.

        Raises:
            Unusable: the helper says so, or has ended.
            OSError: the kernel refuses what was ordered, or the helper does (EPERM).
        """
        packet = json.dumps([name, *words]).encode()
        with self._lock:
            try:
                socket.send_fds(self._socket, [packet], [] if fd is None else [fd])
                data, fds, flags, _ = _receive(self._socket)
            except ConnectionError:
                data, fds, flags = b"", [], 0
        if not data:
            raise Unusable(
                f"the helper process that {self._helper} has ended: restart the agent",
                code="G096",
            )
        if flags & socket.MSG_CTRUNC:  # we have no room for the descriptor
            raise OSError(errno.EMFILE, os.strerror(errno.EMFILE))
        said = json.loads(data)
        if "unusable" in said:
            raise Unusable(said["unusable"], code=said["code"])
        if "errno" in said:
            raise OSError(said["errno"], said["text"], said["file"])
        return Answer(said["value"], fds[0] if fds else None)

    def close(self) -> None:
        """End the helper."""
        self._socket.close()


def serve(sock: socket.socket, handlers: Mapping[str, Handler]) -> None:
    """Do what is ordered, until the agent closes its end or is gone."""
    while True:
        try:
            data, fds, flags, _ = _receive(sock)
        except ConnectionError:
            return
        if not data:
            return
        # Closed before the answer: the agent may go on as if we had none of them.
        with _Closing(fds):
            said, fd = _do(data, fds, flags, handlers)
        _send(sock, said, fd)


def _receive(sock: socket.socket) -> tuple[bytes, list[int], int, object]:
    return socket.recv_fds(sock, LONGEST, MOST_FDS, socket.MSG_CMSG_CLOEXEC)


def _do(
    data: bytes, fds: Sequence[int], flags: int, handlers: Mapping[str, Handler]
) -> tuple[dict[str, object], int | None]:
    """Do an order; return what to answer."""
    try:
        order = _parse(data, fds, flags)
        if order.name not in handlers:
            raise BadOrder(f"there is no order {order.name!r}")
        answer = handlers[order.name](order)
    except BadOrder as why:
        text = f"{os.strerror(errno.EPERM)}: {why}"
        return _failure(OSError(errno.EPERM, text)), None
    except Unusable as why:
        short = shortage(why)
        return _failure(short) if short else {
            "unusable": str(why),
            "code": why.code,
        }, None
    except OSError as error:
        return _failure(error), None
    return {"value": answer.value}, answer.fd


def _failure(error: OSError) -> dict[str, object]:
    return {
        "errno": error.errno or errno.EIO,
        "text": error.strerror or str(error),
        "file": None if error.filename is None else str(error.filename),
    }


def _parse(data: bytes, fds: Sequence[int], flags: int) -> Order:
    if flags & (socket.MSG_TRUNC | socket.MSG_CTRUNC):
        raise BadOrder("an order is too long")
    try:
        words = json.loads(data)
    except (ValueError, RecursionError):
        raise BadOrder("an order is no JSON") from None
    if not isinstance(words, list) or not words or not isinstance(words[0], str):
        raise BadOrder("an order is no list that begins with a name")
    return Order(words[0], words[1:], fds)


def _send(sock: socket.socket, said: dict[str, object], fd: int | None) -> None:
    with _Closing([] if fd is None else [fd]):
        try:
            packet = json.dumps(said).encode()
            socket.send_fds(sock, [packet], [] if fd is None else [fd])
        except ConnectionError:
            return  # the agent is gone, which the next read says too


class _Closing(ExitStack):
    """Closes descriptors at the end of a block."""

    def __init__(self, fds: Sequence[int]) -> None:
        super().__init__()
        for fd in fds:
            self.callback(os.close, fd)

    def __enter__(self) -> Self:
        return self

# SPDX-License-Identifier: Apache-2.0
"""Does something while a socket is bound and does not listen yet."""

import socket
from collections.abc import Callable

import pytest


def before_listen(patch: pytest.MonkeyPatch, action: Callable[[], object]) -> None:
    """Call `action` between the bind() and the listen() of each socket."""
    listen = socket.socket.listen

    def first_act(sock: socket.socket, *backlog: int) -> None:
        action()
        listen(sock, *backlog)

    patch.setattr(socket.socket, "listen", first_act)

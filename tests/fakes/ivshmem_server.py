# SPDX-License-Identifier: Apache-2.0
"""A fake ivshmem server on a socket, which sends what the test asks it to send."""

import os
import socket
from contextlib import ExitStack, suppress
from pathlib import Path

from tests.waiting import TIMEOUT
from vhostpci_guest.dataplane.mapping import Mapping
from vhostpci_guest.eventfds import drain, new_eventfd
from vhostpci_shared import ivshmem
from vhostpci_shared import metadata as md
from vhostpci_shared.access import Metadata, find

SIZE = 1 << 20


class FakeServer:
    """A server that listens on `path`; call `accept` first, then send messages.

    Its memory has a metadata region, as a daemon's has.

    Args:
        path: the socket.
        window: the ID that it gives to a client.
    """

    def __init__(self, path: Path, *, window: int = md.SLAVE_ID) -> None:
        self.window = window
        self._undo = ExitStack()
        self._listener = self._undo.enter_context(
            socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        )
        self._listener.bind(str(path))
        self._listener.listen()
        self._listener.settimeout(TIMEOUT)
        self._client: socket.socket | None = None
        self.memory = os.memfd_create("arena")
        self._undo.callback(os.close, self.memory)
        os.ftruncate(self.memory, SIZE)
        self.mapping = Mapping(self.memory, SIZE)
        self._undo.callback(self.mapping.close)
        self.metadata = Metadata(find(self.mapping.view))
        self._undo.callback(self.metadata.release)
        self.metadata.format()

    def accept(self) -> None:
        """Accept the next client; close the connection of the previous one."""
        self.hang_up()
        self._client, self.client_name = self._listener.accept()

    def say(self, message: int, *fds: int) -> None:
        """Send one message."""
        self.say_bytes(ivshmem.encode(message), *fds)

    def say_bytes(self, data: bytes, *fds: int) -> None:
        """Send any bytes."""
        assert self._client is not None
        socket.send_fds(self._client, [data], list(fds))

    def greet(self, vectors: int = 3) -> None:
        """Send a whole handshake of a device; peer 1 is the daemon."""
        self.say(ivshmem.VERSION)
        self.say(self.window)
        self.say(ivshmem.SHARED_MEMORY, self.memory)
        self.doorbell = self.introduce(md.DAEMON_PEER)[0]
        self.vectors = self.introduce(self.window, vectors)

    def greet_window(self) -> None:
        """Send a whole handshake of a window socket: memory and one vector."""
        self.say(ivshmem.VERSION)
        self.say(self.window)
        self.say(ivshmem.SHARED_MEMORY, self.memory)
        self.introduce(self.window)

    def introduce(self, peer: int, vectors: int = 1) -> list[int]:
        """Send the eventfds of a peer; return them."""
        fds = []
        for _ in range(vectors):
            fds.append(new_eventfd())
            self._undo.callback(os.close, fds[-1])
            self.say(peer, fds[-1])
        return fds

    def rung(self, fd: int) -> bool:
        """Return whether a doorbell was rung, and clear it."""
        return drain(fd)

    def hung_up(self) -> bool:
        """Return whether the client has closed the connection."""
        assert self._client is not None
        self._client.settimeout(0.2)
        with suppress(TimeoutError):
            return not self._client.recv(1)
        return False

    def hang_up(self) -> None:
        """Close the connection."""
        if self._client is not None:
            self._client.close()
            self._client = None

    def close(self) -> None:
        """Close everything."""
        self.hang_up()
        self._undo.close()

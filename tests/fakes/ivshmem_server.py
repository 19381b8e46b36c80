# SPDX-License-Identifier: Apache-2.0
"""An ivshmem server on a socket, which says what the test wants it to say."""

import os
import socket
from contextlib import ExitStack
from pathlib import Path

from vhostpci_guest.device import Mapping, drain, new_eventfd
from vhostpci_shared import ivshmem
from vhostpci_shared import metadata as md
from vhostpci_shared.access import Metadata, find

SIZE = 1 << 20


class FakeServer:
    """Listens on `path`; `accept`, then say things.

    Its memory has metadata, as a daemon's has.
    """

    def __init__(self, path: Path) -> None:
        self._undo = ExitStack()
        self._listener = self._undo.enter_context(
            socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        )
        self._listener.bind(str(path))
        self._listener.listen()
        self._listener.settimeout(5)
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
        """Take the client that has connected."""
        self._client, _address = self._listener.accept()

    def say(self, message: int, *fds: int) -> None:
        """Send one message."""
        self.say_bytes(ivshmem.encode(message), *fds)

    def say_bytes(self, data: bytes, *fds: int) -> None:
        """Send any bytes."""
        assert self._client is not None
        socket.send_fds(self._client, [data], list(fds))

    def greet(self, vectors: int = 3) -> None:
        """Say all that makes a client a device; the daemon's doorbell is peer 1."""
        self.say(ivshmem.VERSION)
        self.say(md.SLAVE_ID)
        self.say(ivshmem.SHARED_MEMORY, self.memory)
        self.doorbell = self.introduce(md.DAEMON_PEER)[0]
        self.vectors = self.introduce(md.SLAVE_ID, vectors)

    def introduce(self, peer: int, vectors: int = 1) -> list[int]:
        """Introduce a peer; return our ends of its doorbells."""
        fds = []
        for _ in range(vectors):
            fds.append(new_eventfd())
            self._undo.callback(os.close, fds[-1])
            self.say(peer, fds[-1])
        return fds

    def rung(self, fd: int) -> bool:
        """Whether a doorbell was rung."""
        return drain(fd)

    def hang_up(self) -> None:
        """Close the connection."""
        if self._client is not None:
            self._client.close()
            self._client = None

    def close(self) -> None:
        """Close everything."""
        self.hang_up()
        self._undo.close()

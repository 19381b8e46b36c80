# SPDX-License-Identifier: Apache-2.0
"""A keeper in the test's process, which keeps what a daemon tells it to keep."""

import socket

from vhostpci_host.fds import Fd
from vhostpci_host.keeper import notices
from vhostpci_host.keeper.store import DescriptorStore


class FakeKeeper:
    """The other end of a store's socket; acts on notices when `take` is called."""

    def __init__(self) -> None:
        self.kept: dict[str, Fd] = {}
        self.ours, theirs = _channel()
        self.store = DescriptorStore(theirs, {})

    def replace_store(self) -> DescriptorStore:
        """Return the store of a daemon that starts now, after the one before."""
        self.take()
        self.ours.close()
        self.ours, theirs = _channel()
        left = {name: fd.copy() for name, fd in self.kept.items()}
        self.store = DescriptorStore(theirs, left)
        return self.store

    def take(self) -> list[str]:
        """Act on what has come; return what each notice did."""
        done: list[str] = []
        while True:
            try:
                notice, fds = notices.receive(self.ours)
            except BlockingIOError:
                return done
            if not notice:
                return done
            said = notices.parse(notice)
            name = said.get("FDNAME", "")
            if said.get("FDSTORE") == "1":
                (number,) = fds
                assert name not in self.kept
                self.kept[name] = Fd(number)
                done.append(f"+{name}")
                continue
            for number in fds:
                Fd(number).close()
            if said.get("FDSTOREREMOVE") == "1":
                self.kept.pop(name).close()
                done.append(f"-{name}")

    def close(self) -> None:
        self.store.close()
        while self.kept:
            self.kept.popitem()[1].close()
        self.ours.close()


def _channel() -> tuple[socket.socket, socket.socket]:
    pair = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    for one in pair:
        one.setblocking(False)
    return pair

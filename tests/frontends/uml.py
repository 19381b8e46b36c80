# SPDX-License-Identifier: Apache-2.0
"""User Mode Linux: a whole Linux kernel as one process, with a vhost-user card.

Its root file system is this machine's own (hostfs), read-only; so it has every
program that this machine has, and needs no image.
"""

import os
import re
import signal
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path

from tests.frontends.console import Console
from tests.pings import came_back, ping
from tests.process.lab import MASTER_ADDRESS, SLAVE_ADDRESS
from tests.processes import children, stop
from tests.waiting import wait_for

INIT = Path(__file__).parent / "uml-init"
ALONE = [
    *("setpriv", "--pdeathsig", "KILL", "unshare", "--pid", "--fork", "--kill-child"),
]
"""A PID namespace: it is several processes, which must all end with the first."""
MODULES = "/usr/lib/uml/modules/$(uname -r)/kernel"


def card(socket: Path) -> str:
    """Return the word of its command line for a card that the daemon serves."""
    return f"virtio_uml.device={socket}:1"


def command(card: str, memory: str, directory: Path) -> list[str]:
    """Return the command line; `directory` is where it writes its own files."""
    return [
        *("linux.uml", f"mem={memory}", card),
        *("rootfstype=hostfs", "rootflags=/", "ro", "init=/bin/sh"),
        *("con=null", "con0=fd:0,fd:1", "quiet", f"uml_dir={directory}", "umid=uml"),
        *("--", str(INIT)),
    ]


class UserModeLinux(Console):
    """A booted User Mode Linux with one network card.

    Args:
        card: the word of its command line for the card; see :func:`card`.
        directory: where its own files go.
        memory: its size.
        prefix: words before its command, as those of a network namespace.
    """

    def __init__(
        self,
        card: str,
        directory: Path,
        memory: str = "128M",
        *,
        prefix: Iterable[str] = (),
    ) -> None:
        argv = [*prefix, *ALONE, *command(card, memory, directory)]
        super().__init__(argv, directory / "uml.log")
        wait_for(lambda: self.ended() or "@up" in self.log, "User Mode Linux boots")
        assert not self.ended(), self.log

    def run(self, line: str, *, check: bool = True) -> str:
        """Run a shell command in it; return what it printed."""
        before = self.write(line)
        wait_for(lambda: self._status(before) or self.ended(), f"{line}: {self.log}")
        status = self._status(before)
        assert status, self.log
        output = self.log[before:][: status.start()]
        assert not (check and int(status[1])), f"{line}: {output}"
        return output

    def _status(self, before: int) -> re.Match[str] | None:
        return re.search(r"^@(\d+)", self.log[before:], re.MULTILINE)

    @contextmanager
    def standing_still(self) -> Iterator[None]:
        """Stop its kernel, which runs all its programs, until the block ends."""
        (kernel,) = children(self.process.pid)
        stop(kernel)
        try:
            yield
        finally:
            os.kill(kernel, signal.SIGCONT)

    def up(self, name: str = "eth0") -> None:
        """Give the card its address, and set it up."""
        self.run(f"ip addr add {MASTER_ADDRESS}/24 dev {name} && ip link set {name} up")

    def ping(self, count: int = 5) -> int:
        """Ping the slave; return how many came back."""
        output = self.run(f"{' '.join(ping(count))} {SLAVE_ADDRESS}", check=False)
        return came_back(output, count)

    def reload_driver(self) -> None:
        """Unload the card's driver, and load it again."""
        self.run("rmmod virtio_net")
        self.run(f"insmod {MODULES}/drivers/net/virtio_net.ko")
        self.up()

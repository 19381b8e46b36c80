# SPDX-License-Identifier: Apache-2.0
"""passt as a back-end: a user-mode network stack, and no TAP.

What its guest sends to the gateway's address goes to the loopback address of the
namespace in which passt runs; a port that is forwarded goes the other way.
"""

from pathlib import Path

from tests.process.program import Program
from tests.vm.harness import DIE_WITH_US
from tests.vm.netns import Namespace
from tests.vm.programs import Unpacked, unpacked
from tests.waiting import wait_for

PROGRAM = "usr/bin/passt"
GUEST = "10.9.0.1"
GATEWAY = "10.9.0.2"


def packages(suite: str) -> Unpacked:
    """Return passt of a suite of Debian."""
    return unpacked(suite, "passt")


class Passt(Program):
    """passt, which serves one front-end and ends with it.

    Args:
        files: where it is.
        socket: where it listens.
        namespace: the network that it connects its guest to; lo is up there.
        ports: TCP ports of the guest's that it takes connections for.
    """

    def __init__(
        self, files: Unpacked, socket: Path, namespace: Namespace, ports: str = "none"
    ) -> None:
        super().__init__(
            [
                *(*namespace.prefix, *DIE_WITH_US),
                *(*files.command(PROGRAM), "--foreground", "--vhost-user"),
                *("--socket", str(socket), "--runas", "0", "--tcp-ports", ports),
                *("--address", GUEST, "--netmask", "24", "--gateway", GATEWAY),
                *("--ipv4-only", "--interface", "lo", "--mtu", "1500"),
            ],
            socket.with_suffix(".log"),
        )
        wait_for(
            lambda: socket.exists() or self.process.poll() is not None,
            lambda: f"passt listens\n{self.log}",
        )
        assert self.process.poll() is None, self.log

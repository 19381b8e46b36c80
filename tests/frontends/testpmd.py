# SPDX-License-Identifier: Apache-2.0
"""DPDK's test program with a vhost-user card: net_virtio_user, "virtio-user".

It answers ARP and ping for any address (`--forward-mode=icmpecho`), by polling.
"""

import os
import re
from pathlib import Path
from typing import Self

from tests.frontends.console import Console
from tests.waiting import wait_for

PROMPT = "testpmd> "
MAC = "52:54:00:09:00:01"
NO_HUGE = ("--no-huge", "-m", "64")
HUGE = ("--in-memory", "--single-file-segments", "-m", "64")
"""Huge pages of one memfd, which needs no mount."""


def command(
    socket: Path,
    eal: tuple[str, ...],
    *,
    pairs: int,
    mbufs: int,
    forward: str,
    options: str,
) -> list[str]:
    """Return the command line."""
    cores = ",".join(map(str, sorted(os.sched_getaffinity(0))))
    return [
        *("dpdk-testpmd", "--lcores", f"0@({cores}),1@({cores})"),
        *("--no-pci", "--no-telemetry", *eal),
        *(
            "--vdev",
            f"net_virtio_user0,path={socket},queues={pairs},mac={MAC}{options}",
        ),
        *("--", "--interactive", "--auto-start", f"--forward-mode={forward}"),
        "--no-flush-rx",  # else `start` throws away what waits in its rings
        *(f"--rxq={pairs}", f"--txq={pairs}", f"--total-num-mbufs={mbufs}"),
    ]


class Pmd(Console):
    """A testpmd; it polls and keeps a processor busy, so end it soon."""

    def started(self) -> Self:
        """Wait until it polls."""
        wait_for(lambda: self.ended() or PROMPT in self.log, "testpmd starts")
        assert not self.ended(), self.log
        return self

    def run(self, line: str) -> str:
        """Run one of its commands; return what it printed."""
        before = self.write(line)
        wait_for(lambda: self.ended() or PROMPT in self.log[before:], line)
        return self.log[before:]

    def counted(self) -> tuple[int, int]:
        """Return the packets that it received and sent, as it counts them."""
        output = self.run("show port stats 0")
        received = re.search(r"RX-packets: *(\d+)", output)
        sent = re.search(r"TX-packets: *(\d+)", output)
        assert received, output
        assert sent, output
        return int(received[1]), int(sent[1])

    def quit(self) -> int:
        """End it as a user does; return its exit status."""
        return self.end_with("quit")


class Testpmd(Pmd):
    """A testpmd whose card a daemon of ours serves."""

    __test__ = False  # not a class of tests, although its name begins like one

    def __init__(
        self,
        socket: Path,
        directory: Path,
        eal: tuple[str, ...] = NO_HUGE,
        *,
        pairs: int = 1,
        mbufs: int = 4096,
        forward: str = "icmpecho",
        options: str = "",
        prefix: tuple[str, ...] = (),
    ) -> None:
        alone = [*("setpriv", "--pdeathsig", "KILL"), *prefix, "stdbuf", "-oL"]
        super().__init__(
            [
                *alone,
                *command(
                    *(socket, eal),
                    pairs=pairs,
                    mbufs=mbufs,
                    forward=forward,
                    options=options,
                ),
            ],
            directory / "testpmd.log",
            {**os.environ, "RUNTIME_DIRECTORY": str(directory)},
        )

# SPDX-License-Identifier: Apache-2.0
"""DPDK's test program with a vhost-user card: net_virtio_user, "virtio-user".

It answers ARP and ping for any address (`--forward-mode=icmpecho`), by polling.
"""

import os
import re
import subprocess
from pathlib import Path
from typing import IO, Self

from tests.waiting import TIMEOUT, wait_for

PROMPT = "testpmd> "
MAC = "52:54:00:09:00:01"
NO_HUGE = ("--no-huge", "-m", "64")
HUGE = ("--in-memory", "--single-file-segments", "-m", "64")
"""Huge pages of a memfd, which need no mount; one file for all of them."""


def command(socket: Path, eal: tuple[str, ...], *, pairs: int, mbufs: int) -> list[str]:
    """Return the command line."""
    cores = ",".join(map(str, sorted(os.sched_getaffinity(0))))
    return [
        *("dpdk-testpmd", "--lcores", f"0@({cores}),1@({cores})"),
        *("--no-pci", "--no-telemetry", *eal),
        *("--vdev", f"net_virtio_user0,path={socket},queues={pairs},mac={MAC}"),
        *("--", "--interactive", "--auto-start", "--forward-mode=icmpecho"),
        *(f"--rxq={pairs}", f"--txq={pairs}", f"--total-num-mbufs={mbufs}"),
    ]


class Testpmd:
    """testpmd, started; it polls, so it is to be ended soon."""

    __test__ = False  # no test, though it begins like one

    def __init__(
        self,
        socket: Path,
        directory: Path,
        eal: tuple[str, ...] = NO_HUGE,
        *,
        pairs: int = 1,
        mbufs: int = 4096,
        prefix: tuple[str, ...] = (),
    ) -> None:
        self._log = directory / "testpmd.log"
        argv = [*("setpriv", "--pdeathsig", "KILL"), *prefix, "stdbuf", "-oL"]
        with self._log.open("wb") as output:
            self.process = subprocess.Popen(
                [*argv, *command(socket, eal, pairs=pairs, mbufs=mbufs)],
                stdin=subprocess.PIPE,
                stdout=output,
                stderr=output,
                env={**os.environ, "RUNTIME_DIRECTORY": str(directory)},
            )

    def started(self) -> Self:
        """Wait until it polls."""
        wait_for(lambda: self.ended() or PROMPT in self.log, "testpmd starts")
        assert not self.ended(), self.log
        return self

    def ended(self) -> bool:
        """Whether it has ended, be it by itself."""
        return self.process.poll() is not None

    @property
    def log(self) -> str:
        """What it has said so far."""
        return self._log.read_text(errors="replace")

    @property
    def _console(self) -> IO[bytes]:
        assert self.process.stdin is not None
        return self.process.stdin

    def run(self, line: str) -> str:
        """Run one of its commands; return what it printed."""
        before = len(self.log)
        self._console.write(line.encode() + b"\n")
        self._console.flush()
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
        self._console.write(b"quit\n")
        self._console.close()
        return self.process.wait(TIMEOUT)

    def close(self) -> None:
        """Make sure that it is gone."""
        if not self.ended():
            self.process.kill()
            self.process.wait(TIMEOUT)
        if not self._console.closed:
            self._console.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

# SPDX-License-Identifier: Apache-2.0
"""iperf3 and ping between the two network namespaces of a lab, all the time."""

import itertools
import json
import re
import signal
import time
from dataclasses import dataclass

from tests.process.lab import MASTER_ADDRESS, SLAVE_ADDRESS, Lab
from tests.process.master import TAP
from tests.process.program import Program, run

SECONDS = 10
"""Of each session of iperf3."""
PATIENCE = 60
"""Seconds after which a session has failed: iperf3 waits without end for some."""
MIX = {
    "TCP, 8 streams from the slave": "-P 8",
    "TCP, 8 streams to the slave": "-P 8 -R",
    "TCP, both ways": "-P 4 --bidir",
    "UDP": "-u -b 20M -l 1400",
    "UDP, 64 bytes each": "-u -b 3M -l 64",
    "TCP, writes of 64 KiB": "-l 64K",
    "TCP, writes of 64 bytes": "-N -l 64",
}
PROBES = 0.02
"""Seconds between two pings."""


@dataclass(slots=True)
class Sessions:
    """How many sessions of one kind there were."""

    done: int = 0
    failed: int = 0


class Traffic:
    """One session of iperf3 after the other.

    Args:
        lab: has a master with a driver, and an agent.
    """

    def __init__(self, lab: Lab) -> None:
        self.sessions = {name: Sessions() for name in MIX}
        self._lab = lab
        self._kinds = itertools.cycle(MIX)
        self._ports = itertools.cycle(range(5201, 5301))
        self._kind = ""
        self._server: Program | None = None
        self._client: Program | None = None
        self._began = 0.0

    def step(self) -> None:
        """Start the next session if there is none any more."""
        if self._client is not None:
            if not self._is_over(self._client):
                return
            self._end()
        self._kind, port = next(self._kinds), str(next(self._ports))
        server = ["iperf3", "-s", "-1", "--forceflush", "-p", port]
        self._server = self._lab.start_server(server)
        self._server.wait_log("listening")
        client = ["iperf3", "-c", MASTER_ADDRESS, "-p", port, "-t", str(SECONDS)]
        words = [*self._lab.slave.prefix, *client, *MIX[self._kind].split()]
        self._client = self._lab.start_server(words)
        self._began = time.monotonic()

    def _is_over(self, client: Program) -> bool:
        if time.monotonic() > self._began + PATIENCE:
            client.close()
        return client.process.poll() is not None

    def _end(self) -> None:
        assert self._client is not None, "no session"
        assert self._server is not None, "no session"
        sessions = self.sessions[self._kind]
        if self._client.process.wait():
            sessions.failed += 1
        else:
            sessions.done += 1
        self._server.close()

    def packets(self) -> int:
        """Return the packets that the master has sent and received."""
        done = run("ip", "-s", "-j", "link", "show", TAP)
        (link,) = json.loads(done.stdout)
        return sum(int(link["stats64"][way]["packets"]) for way in ("rx", "tx"))


class Probe:
    """Pings the slave, and says when replies came.

    Args:
        lab: has a master.
    """

    def __init__(self, lab: Lab) -> None:
        self._pings = lab.start_server(
            ["ping", "-D", "-n", "-i", str(PROBES), "-W", "60", SLAVE_ADDRESS]
        )

    def replies(self) -> list[float]:
        """Return the times (as of time.time()) of the replies, the last ones."""
        found = re.findall(r"^\[(\d+\.\d+)\].*bytes from", self._pings.log, re.M)
        return [float(text) for text in found]

    def longest_gap(self, since: float) -> float:
        """Return the longest time without a reply since then, and forget the past."""
        replies = [when for when in self.replies() if when > since - 1.0]
        self._pings.start_log_here()
        # From the last reply before it, if there was one within a second.
        before = max((when for when in replies if when <= since), default=since)
        times = [before, *(when for when in replies if when > since)]
        return max(
            (later - sooner for sooner, later in itertools.pairwise(times)),
            default=time.time() - since,
        )

    def has_replied(self, since: float) -> bool:
        """Whether a reply came since then."""
        return any(when > since for when in self.replies())

    def close(self) -> None:
        """Ping no more."""
        self._pings.end(signal.SIGINT)

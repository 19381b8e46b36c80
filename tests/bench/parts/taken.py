# SPDX-License-Identifier: Apache-2.0
"""A master whose kicks and interrupts the agent has itself, beside relayed ones.

    ours       User Mode Linux ─────────────────────────── vhostpci-guest
    the peers  User Mode Linux ── a relay in C, in Python ── vhostpci-guest

The agent starts before its master, and is a process.  A peer's agent says, as earlier
ones did, by the name of its socket that it takes no kicks.  All masters run all the
time, and one of them has something to do.
"""

import os
import re
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np

from tests.bench.compiling import require
from tests.bench.figures import Figure
from tests.bench.plan import CannotMeasure, Part, Plan
from tests.fakes.netns import private_network
from tests.frontends.uml import UserModeLinux, card
from tests.pings import ping
from tests.process.attach import AttachLab
from tests.process.lab import ATTACH, MASTER_ADDRESS

PINGS, QUICK_PINGS = 300, 60
AS_IT_IS = ""
OLDER_AGENT = (
    r"from vhostpci_shared import ivshmem; ivshmem.TAKES_KICKS = b'\0vhostpci.older.'; "
)
WITHOUT_C = "import sys; sys.modules['vhostpci_shared._relay'] = None; "


def changed(argv: Sequence[str], module: str, change: str) -> list[str]:
    """Return the command of a program that changes itself when it starts."""
    at = argv.index(module)
    code = f"{change}from {module}.cli.main import main; raise SystemExit(main())"
    return [*argv[: at - 1], "-c", code, *argv[at + 1 :]]


class ChangedLab(AttachLab):
    """A lab whose programs change themselves when they start."""

    def __init__(self, directory: Path, agent: str, daemon: str) -> None:
        super().__init__(directory)
        self._agent_change, self._daemon_change = agent, daemon

    def agent_argv(self, *options: str) -> list[str]:
        argv = super().agent_argv(*options)
        return changed(argv, "vhostpci_guest", self._agent_change)

    def daemon_argv(self, *options: str, name: str = "net0") -> list[str]:
        argv = super().daemon_argv(*options, name=name)
        return changed(argv, "vhostpci_host", self._daemon_change)


@dataclass(frozen=True, slots=True)
class Round:
    """What one run has found."""

    trip: float
    """Microseconds of a round trip, in the fastest tenth.

    Other programs delay half of all packets by far more than what is compared here.
    """
    daemon: float
    """Microseconds of the daemon's processor time for it."""


def pinged(lab: AttachLab, count: int) -> Round:
    """Ping the master; return what that took."""
    before = daemon_us(lab)
    done = lab.run_in_slave(*ping(count, "-i", "0.005"), MASTER_ADDRESS)
    spent = daemon_us(lab) - before
    trips = [float(one) for one in re.findall(r"time=([\d.]+) ms", done.stdout)]
    if len(trips) < count:
        raise CannotMeasure(f"{len(trips)} of {count} pings came back")
    return Round(1000 * float(np.percentile(trips, 10)), spent / count)


def daemon_us(lab: AttachLab) -> float:
    """Return the processor time of the daemon's threads so far."""
    tasks = Path(f"/proc/{lab.daemon.serving}/task").iterdir()
    return sum(int((task / "schedstat").read_text().split()[0]) for task in tasks) / 1e3


@contextmanager
def labs() -> Iterator[list[AttachLab]]:
    """Ours, the one with a relay in C, the one with a relay in Python."""
    changes = [(AS_IT_IS, AS_IT_IS), (OLDER_AGENT, AS_IT_IS), (OLDER_AGENT, WITHOUT_C)]
    with ExitStack() as stack:
        stack.enter_context(private_network())
        temporary = TemporaryDirectory(prefix="vhp-bench-")
        top = Path(stack.enter_context(temporary))
        found: list[AttachLab] = []
        for number, (agent, daemon) in enumerate(changes):
            directory = top / str(number)
            directory.mkdir()
            lab = stack.enter_context(ChangedLab(directory, agent, daemon))
            found.append(lab)
            lab.start_daemon(*ATTACH)
            lab.start_agent()
            lab.wait_carrier("NO-CARRIER")
            master = UserModeLinux(card(lab.socket), directory)
            stack.enter_context(master).up()
            lab.wait_carrier("UP")
        yield found


def figures(peer_name: str, ours: list[Round], peer: list[Round]) -> list[Figure]:
    """Make the figures beside one peer."""

    def one(name: str, what: str) -> Figure:
        return Figure(
            part="taken",
            name=f"{name}, beside {peer_name}",
            unit="us",
            better="lower",
            peer_name=peer_name,
            ours_runs=tuple(getattr(run, what) for run in ours),
            peer_runs=tuple(getattr(run, what) for run in peer),
        )

    return [
        one("round trip of a ping", "trip"),
        one("processor time of the daemon for it", "daemon"),
    ]


def measure(plan: Plan) -> list[Figure]:
    """Ping all masters in turn.

    Raises:
        CannotMeasure: we are not root, or there is no User Mode Linux.
    """
    if os.geteuid():
        raise CannotMeasure("it makes network namespaces and TAPs, which needs root")
    require("linux.uml", "ping", "ip")
    count = QUICK_PINGS if plan.quick else PINGS
    with labs() as found:
        for lab in found:
            lab.ping_from_slave()
        runs = [[pinged(lab, count) for lab in found] for _ in range(plan.runs)]
    ours, in_c, in_python = ([run[i] for run in runs] for i in range(3))
    return [
        *figures("a relay in C", ours, in_c),
        *figures("a relay in Python", ours, in_python),
    ]


PART = Part(
    "taken", "what an agent that is a process gains by having its kicks itself", measure
)

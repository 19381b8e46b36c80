# SPDX-License-Identifier: Apache-2.0
"""Two masters as processes of this machine, to measure the whole way without emulation.

ours        User Mode Linux ── vhostpci-host ── vhostpci-guest ── vp0   (namespace)
the peer    User Mode Linux, its own TAP driver ───────────────── tap0  (namespace)

Both kernels are the same one, with the same memory.  They run all the time, and only
one of them has something to do.
"""

import json
import os
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory

from tests.bench.compiling import require
from tests.bench.plan import CannotMeasure
from tests.fakes.netns import private_network
from tests.frontends.uml import UserModeLinux, card
from tests.process.attach import AttachLab
from tests.process.lab import SLAVE_ADDRESS
from tests.process.program import Program
from tests.vm.netns import Namespace

PEER_TAP = "tap0"
PEER_CARD = f"vec0:transport=tap,ifname={PEER_TAP},depth=128,gro=1"
PEER_NAME = "User Mode Linux's own TAP driver"
HERTZ = os.sysconf("SC_CLK_TCK")


@dataclass(frozen=True, slots=True)
class Traffic:
    """What iperf3 has reported."""

    bits: float
    """Received."""
    seconds: float
    processor: float
    """Seconds of processor time, of all processes of that side but iperf3's server."""

    @property
    def rate(self) -> float:
        """Gbit/s."""
        return self.bits / self.seconds / 1e9

    @property
    def cost(self) -> float:
        """Seconds of processor time for a Gbit."""
        return self.processor / (self.bits / 1e9)


@dataclass(frozen=True, slots=True)
class Side:
    """A master, and what serves it."""

    uml: UserModeLinux
    programs: Sequence[int]
    """The processes that move its packets, without their children."""

    def iperf(self, seconds: float, *words: str) -> Traffic:
        """Send TCP from the master for some seconds, or what `words` say.

        Raises:
            CannotMeasure: iperf3 says why.
        """
        before = sum(map(tree_seconds, self.programs))
        command = ("iperf3", "-J", "-t", f"{seconds:g}", "-c", SLAVE_ADDRESS, *words)
        report = json.loads(self.uml.run(" ".join(command), check=False))
        processor = sum(map(tree_seconds, self.programs)) - before
        if "error" in report:
            raise CannotMeasure(f"iperf3 in the master: {report['error']}")
        return understand(report, processor)

    def idle(self, seconds: float) -> float:
        """Return what part of a processor it takes when nothing happens."""
        before = sum(map(threads_seconds, self.programs))
        time.sleep(seconds)
        return (sum(map(threads_seconds, self.programs)) - before) / seconds


Sums = dict[str, dict[str, dict[str, float]]]


def understand(report: Sums, spent: float) -> Traffic:
    """Return what a report of iperf3's says."""
    end = report["end"]
    # For UDP, iperf3 up to 3.13 has no sum_received: `sum` counts what was sent, and
    # knows what of it was lost.
    if "sum_received" in end:
        received = end["sum_received"]
        bits = received["bits_per_second"] * received["seconds"]
        return Traffic(bits, received["seconds"], spent)
    sent = end["sum"]
    bits = 8 * sent["bytes"] * (1 - sent["lost_percent"] / 100)
    return Traffic(bits, sent["seconds"], spent)


def threads_seconds(pid: int) -> float:
    """Return the processor time of the threads of a process and of all below it.

    It is exact, where :func:`tree_seconds` counts in hundredths of a second, and leaves
    out what has ended.
    """
    stats = read_stats()
    spent = 0
    for one in [pid, *below(pid, stats)]:
        for path in Path(f"/proc/{one}/task").glob("*/schedstat"):
            spent += int(path.read_text().split()[0])
    return spent / 1e9


def tree_seconds(pid: int) -> float:
    """Return the processor time of a process and of all that it has started."""
    return tree_ticks(pid, read_stats()) / HERTZ


def read_stats() -> dict[int, list[str]]:
    """Return /proc/PID/stat of each process, from the state on."""
    stats = {}
    for path in Path("/proc").glob("[0-9]*/stat"):
        try:
            # The name, in brackets, may have blanks in it.
            stats[int(path.parent.name)] = path.read_text().rpartition(")")[2].split()
        except (FileNotFoundError, ProcessLookupError):
            continue  # it has ended since glob() saw it
    return stats


def below(pid: int, stats: dict[int, list[str]]) -> list[int]:
    """Return the children of a process, and theirs."""
    children = [child for child, stat in stats.items() if int(stat[1]) == pid]
    return children + [one for child in children for one in below(child, stats)]


def tree_ticks(pid: int, stats: dict[int, list[str]]) -> int:
    """Sum up utime and stime, also of children that have ended."""
    there = [one for one in (pid, *below(pid, stats)) if one in stats]
    return sum(int(ticks) for one in there for ticks in stats[one][11:15])


@contextmanager
def ours_side(directory: Path, *agent: str) -> Iterator[Side]:
    """A master of a daemon, whose agent has those options as well."""
    with AttachLab(directory) as lab:
        lab.start_daemon("--mode", "attach")
        lab.start_agent(*agent)
        lab.wait_carrier("NO-CARRIER")
        with UserModeLinux(card(lab.socket), directory) as uml:
            uml.up()
            lab.wait_carrier("UP")
            lab.start_server([*lab.slave.prefix, *SERVER]).wait_log("listening")
            processes = [uml.process, lab.daemon.process, lab.agent.process]
            yield Side(uml, [process.pid for process in processes])


SERVER = ("iperf3", "-s", "--forceflush")


@contextmanager
def peer_side(directory: Path) -> Iterator[Side]:
    """A master with its own driver of a TAP, which is made before."""
    with ExitStack() as stack:
        namespace = stack.enter_context(Namespace())
        namespace.run(f"ip tuntap add {PEER_TAP} mode tap vnet_hdr")
        namespace.run(f"ip addr add {SLAVE_ADDRESS}/24 dev {PEER_TAP}")
        namespace.run(f"ip link set {PEER_TAP} up")
        uml = UserModeLinux(PEER_CARD, directory, prefix=namespace.prefix)
        stack.enter_context(uml)
        uml.up("vec0")
        server = Program([*namespace.prefix, *SERVER], directory / "iperf3.log")
        stack.callback(server.close)
        server.wait_log("listening")
        yield Side(uml, [uml.process.pid])


@contextmanager
def both_sides(*agent: str) -> Iterator[tuple[Side, Side]]:
    """Ours and the peer's.

    Raises:
        CannotMeasure: we are not root, or there is no User Mode Linux.
    """
    if os.geteuid():
        raise CannotMeasure("it makes network namespaces and TAPs, which needs root")
    require("linux.uml", "iperf3", "ip")
    with ExitStack() as stack:
        stack.enter_context(private_network())
        temporary = TemporaryDirectory(prefix="vhp-bench-")
        directory = Path(stack.enter_context(temporary))
        for name in ("ours", "peer"):
            (directory / name).mkdir()
        ours = stack.enter_context(ours_side(directory / "ours", *agent))
        yield ours, stack.enter_context(peer_side(directory / "peer"))

# SPDX-License-Identifier: Apache-2.0
"""``make demo ARGS=--confined``: a slave that has a part of its master's memory.

  master                      vhostpci-host                 slave
private memory: a secret
shared region ------------------ window ------------ vhostpci-guest -- TAP
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from tests.vm import confined, image, packets, traffic, wheels
from tests.vm.confined import MEMORY, MIB, PAGE, REGION, ConfinedMaster
from tests.vm.daemon import Daemon
from tests.vm.harness import Vm
from tests.vm.pair import MASTER_ADDRESS, SLAVE_ADDRESS, Pair, Slave
from tests.vm.scene import State
from tests.vm.show import Outcome, ping_text, rate_text, table
from tests.vm.stage import Stage
from tests.vm.traffic import Ping

SECONDS = 3
SECRET, SECRET_MIB = "a secret of the master", 16
SHARED = f"{REGION // MIB} of {MEMORY // MIB} MiB"
"""What the drawing has in place of "from memory to memory"."""


@dataclass(slots=True)
class Confined:
    """What the two searches found; the fields have the names of the JSON."""

    shared_mib: int = REGION // MIB
    secrets_found: int | None = None
    secrets_found_ordinary: int | None = None

    @property
    def good(self) -> bool:
        """Whether nothing was found, by a search that finds what is there."""
        return self.secrets_found == 0 and bool(self.secrets_found_ordinary)


@dataclass(slots=True)
class Report(Outcome):
    """The results of the demo; the fields have the names of its JSON."""

    ping: Ping | None = None
    tcp_up_mbps: float | None = None
    tcp_down_mbps: float | None = None
    master_kernel: str | None = None
    confined: Confined | None = None

    def finish(self, seconds: float) -> None:
        """Note how long the demo took, and whether all its results are good."""
        crossed = self.ping is not None and 0 < self.ping.sent == self.ping.received
        rates = self.tcp_up_mbps and self.tcp_down_mbps
        kept = self.confined is not None and self.confined.good
        self.decide(seconds, good=bool(crossed and rates and kept))

    def text(self) -> str:
        """Return the results as text."""
        found = self.confined or Confined()
        rows = [
            ("ping both ways", ping_text(self.ping)),
            ("TCP, master to slave", rate_text(self.tcp_up_mbps)),
            ("TCP, slave to master", rate_text(self.tcp_down_mbps)),
            ("the master", f"Linux {self.master_kernel}, confined"),
            ("the slave has", f"{SHARED} of the master's memory"),
            ("secret, confined", found_text(found.secrets_found)),
            ("secret, ordinary device", found_text(found.secrets_found_ordinary)),
        ]
        return table(self.head("slave"), rows, ok=self.ok)


def found_text(pages: int | None) -> str:
    """Return what a search found as text."""
    if pages is None:
        return "-"
    return f"found {pages:,} pages" if pages else "nothing found"


def search(daemon: Daemon) -> int:
    """Search all of the slave's window; return how many pages' worth was found."""
    window = daemon.memory_dir / daemon.name
    text = confined.digest(SECRET)
    times = confined.search(window, {SECRET: text}).times[SECRET]
    # A part of a page counts as one: what is found is never told as nothing.
    return -(-times * len(text) // PAGE)


def _master(daemon: Daemon, logs: Path, words: str = "") -> ConfinedMaster:
    """Return a master with what ``qemu-args`` prints, not started."""
    line = confined.command_line(words)
    return ConfinedMaster(
        *("master", image.build((), confined.KERNEL)),
        logs=logs,
        args=[*daemon.qemu_args("master"), "-append", line],
    )


@contextmanager
def _up(
    daemon: Daemon, master: ConfinedMaster, logs: Path, report: Report, say: Stage
) -> Iterator[Pair]:
    """Both VMs and the agent, with packets crossing, and a secret in the master."""
    slave = Slave(
        *("slave", image.build(wheels.guest_wheels())),
        logs=logs,
        args=daemon.qemu_args("slave"),
        iommu=True,
    )
    say.set(State.COMING, "master", "slave")
    with slave, master:
        slave.wait_ready()
        say.set(State.THERE, "slave")
        master.wait_ready()
        say.set(State.THERE, "master")
        report.kernel = slave.kernel
        say.set(State.COMING, "agent")
        with slave.agent(report.bind):
            say.set(State.THERE, "agent")
            link = Pair(daemon, master, slave)
            master.configure()
            link.wait_link()
            say.set(State.THERE, "link")
            say(
                f"writing a secret into {SECRET_MIB} MiB of the master's memory",
                "as a program there has its keys or its data",
            )
            master.keep(SECRET, SECRET_MIB)
            yield link


def _traffic(link: Pair, report: Report, say: Stage) -> None:
    say("ping both ways", "the packets are copied into the shared region first")
    report.ping = link.ping_both_ways(apart=True)
    say("iperf3: TCP both ways")
    with traffic.iperf_server(link.slave):
        report.tcp_up_mbps = round(traffic.tcp(link.master, SLAVE_ADDRESS, SECONDS), 1)
    with traffic.iperf_server(link.master):
        rate = traffic.tcp(link.slave, MASTER_ADDRESS, SECONDS)
        report.tcp_down_mbps = round(rate, 1)


def run(
    report: Report, logs: Path, say: Stage, keep: Callable[[Sequence[Vm]], None]
) -> None:
    """Search the window of a confined device, then that of an ordinary one."""
    report.confined = results = Confined()
    say(
        f"a confined device: the slave gets {SHARED} of the master's memory",
        "the card's rings and bounce buffers; the master has Debian sid's kernel",
    )
    here = logs / "confined"
    with confined.served(here) as daemon:
        say.set(State.THERE, "daemon")
        master = _master(daemon, here, daemon.kernel_words())
        with _up(daemon, master, here, report, say) as link:
            report.master_kernel = master.kernel
            say.follow(lambda: packets.by_arrow(daemon.control(daemon.name)))
            _traffic(link, report, say)
            say(
                "searching every byte of the slave's window for the secret",
                "the slave serves the card, and need not be trusted with the rest",
            )
            results.secrets_found = search(daemon)
            say.log(found_text(results.secrets_found))
            keep([link.master, link.slave])
    _ordinary(results, logs / "ordinary", report, say)


def _ordinary(results: Confined, here: Path, report: Report, say: Stage) -> None:
    say(
        "the same with an ordinary device",
        "its slave has all of the master's memory: the search must find the secret",
    )
    with Daemon("card", memory="512M", logs=here) as daemon:
        master = _master(daemon, here)
        with _up(daemon, master, here, report, say):
            results.secrets_found_ordinary = search(daemon)
            say.log(found_text(results.secrets_found_ordinary))

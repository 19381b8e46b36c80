# SPDX-License-Identifier: Apache-2.0
"""``make demo``: two real VMs, and packets across; or a switch VM and its masters.

    python -m tests.vm.demo [--switch] [--bind kmod|vfio|...] [--data-plane vhost-net]
                            [--qemu VERSION] ...

Exit status 0 if every step worked.  The drawings are in pair.py and switch.py.
"""

import argparse
import json
import logging
import os
import shutil
import signal
import sys
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from dataclasses import asdict, dataclass
from pathlib import Path

from tests.vm import demo_confined, dpdk, packets, pair, qemus, switch, traffic
from tests.vm.data_planes import RING, VHOST_NET, VHOST_USER
from tests.vm.harness import Vm
from tests.vm.pair import MASTER_ADDRESS, SLAVE_ADDRESS, Pair, Slave
from tests.vm.scene import PairScene, State, SwitchScene
from tests.vm.show import (
    LOGS,
    Outcome,
    Progress,
    leave_running,
    ping_text,
    rate_text,
    table,
)
from tests.vm.stage import LogLines, Stage
from tests.vm.traffic import Ping

Keep = Callable[[Sequence[Vm]], None]

SECONDS = 5


@dataclass(slots=True)
class Report(Outcome):
    """The results of the demo; the fields have the names of its JSON."""

    ping: Ping | None = None
    tcp_up_mbps: float | None = None
    tcp_down_mbps: float | None = None
    udp_mbps: float | None = None
    ping_after_reload: Ping | None = None

    def finish(self, seconds: float) -> None:
        """Note how long the demo took, and whether all its results are good."""
        rates = (self.tcp_up_mbps, self.tcp_down_mbps, self.udp_mbps)
        pings = (self.ping, self.ping_after_reload)
        crossed = all(run and run.sent == run.received for run in pings)
        self.decide(seconds, good=crossed and all(rates))

    def text(self) -> str:
        """Return the results as text."""
        rows = [
            ("ping both ways", ping_text(self.ping)),
            ("TCP, master to slave", rate_text(self.tcp_up_mbps)),
            ("TCP, slave to master", rate_text(self.tcp_down_mbps)),
            ("UDP, master to slave", rate_text(self.udp_mbps)),
            ("ping after the driver's reload", ping_text(self.ping_after_reload)),
        ]
        return table(self.head("slave"), rows, ok=self.ok)


AnyReport = Report | switch.Report | demo_confined.Report


TRY_NEXT = (
    ("make demo ARGS=--keep", "leave the VMs running, with a console on each"),
    ("make demo ARGS=--switch", "a switch VM whose cards come and go"),
    ("make demo ARGS=--confined", "a slave that cannot read its master's memory"),
    ('make demo ARGS="--data-plane vhost-net"', "the slave's kernel moves the packets"),
    ("README.md", "two VMs of your own, in five minutes"),
)
"""What to do after the demo, and what that shows."""


def perform(link: Pair, report: Report, say: Progress) -> None:
    """Run the steps of the demo, with two VMs and a running agent."""
    say(
        "ping both ways",
        "from the master's virtio-net card to the slave's TAP, and back",
    )
    link.master.configure()
    link.wait_link()
    say.set(State.THERE, "link")
    report.ping = link.ping_both_ways(apart=True)
    _measure(link, report, say)
    say(
        "unloading and loading the master's driver, ping again",
        "a master may do that, or reboot, at any time: the link comes back",
    )
    say.set(State.COMING, "link")
    link.master.reload_driver()
    link.master.configure()
    link.wait_link()
    say.set(State.THERE, "link")
    report.ping_after_reload = link.ping_both_ways(apart=True)


def _measure(link: Pair, report: Report, say: Progress) -> None:
    with traffic.iperf_server(link.slave):
        say(
            "iperf3: TCP from master to slave",
            "each packet is copied once, by the slave, from the master's memory",
        )
        report.tcp_up_mbps = round(traffic.tcp(link.master, SLAVE_ADDRESS, SECONDS), 1)
        say("iperf3: UDP from master to slave")
        report.udp_mbps = round(traffic.udp(link.master, SLAVE_ADDRESS, SECONDS), 1)
    with traffic.iperf_server(link.master):
        say("iperf3: TCP from slave to master")
        report.tcp_down_mbps = round(
            traffic.tcp(link.slave, MASTER_ADDRESS, SECONDS), 1
        )


def _booted(
    report: Report, progress: Stage, *, module: bool
) -> AbstractContextManager[Pair]:
    """Boot both VMs, with the programs that the data plane needs."""
    boot = dpdk.booted if report.data_plane == VHOST_USER else pair.booted
    return boot(LOGS, progress, module=module)


def _served(report: Report, slave: Slave) -> AbstractContextManager[object]:
    """Run the agent, and the back-end if there is one."""
    if report.data_plane == VHOST_USER:
        return dpdk.served(slave, report.bind)
    return slave.agent(report.bind, "--data-plane", report.data_plane)


def run(report: Report, progress: Stage, keep: Keep) -> None:
    """Boot the VMs, run the steps, and call ``keep`` before the VMs end."""
    with _booted(report, progress, module=report.bind == "kmod") as link:
        report.kernel = link.slave.kernel
        progress.follow(lambda: packets.by_arrow(link.daemon.control(link.daemon.name)))
        progress(
            f"vhostpci-guest in the slave, bound by {report.bind}",
            "the master's memory is a PCI device there, and its rings are in it",
        )
        progress.set(State.COMING, "agent")
        with _served(report, link.slave):
            progress.set(State.THERE, "agent")
            try:
                perform(link, report, progress)
            except Exception as error:
                report.fail(error)
            report.finish(progress.seconds())
            keep([link.master, link.slave])
            progress("shutting down")


def _add_kinds(parser: argparse.ArgumentParser) -> None:
    """Add the options that show something else than two VMs."""
    kinds = parser.add_mutually_exclusive_group()
    kinds.add_argument(
        "--switch", action="store_true", help="a switch VM with three masters"
    )
    kinds.add_argument(
        "--confined",
        action="store_true",
        help="a slave that cannot read its master's memory, and a search that shows it "
        "(downloads Debian sid's kernel for the master)",
    )


def _parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="make demo ARGS=...")
    parser.add_argument(
        "--bind",
        choices=("kmod", "vfio", "uio", "sysfs"),
        default="vfio",
        help="default: vfio; kmod builds our module for the slave",
    )
    parser.add_argument(
        "--data-plane",
        choices=(RING, VHOST_NET, VHOST_USER),
        default=RING,
        help="what moves the packets in the slave; vhost-user: DPDK's testpmd; "
        "default: ring",
    )
    _add_kinds(parser)
    parser.add_argument(
        "--qemu",
        metavar="VERSION",
        help="run the VMs with a QEMU of Debian's packages, "
        f"{', '.join(qemus.SUPPORTED)}, or with the one that this is the path of "
        "(default: this machine's)",
    )
    parser.add_argument("--json", type=Path, metavar="FILE", help="also write results")
    parser.add_argument(
        "--picture", type=Path, metavar="FILE", help="also draw all of it, as SVG"
    )
    parser.add_argument(
        "--keep", action="store_true", help="leave the VMs running until Ctrl-C"
    )
    arguments = parser.parse_args()
    if arguments.confined and (
        arguments.data_plane != RING or arguments.bind == "kmod"
    ):
        parser.error("--confined: only with --data-plane ring, and not with kmod")
    return arguments


def _conclude(stage: Stage, report: AnyReport, arguments: argparse.Namespace) -> None:
    """Print the results and what to try next, or where to look for what failed."""
    stage.rest()
    if not stage.is_live:
        print(f"\n{stage.drawing()}")
    results = f"{report.text()} after {report.seconds:.0f} s"
    print(f"\n{results}", flush=True)
    if arguments.json:
        arguments.json.write_text(json.dumps(asdict(report), indent=2) + "\n")
    if arguments.picture:
        arguments.picture.write_text(stage.picture(results))
    if report.ok:
        lines = [f"  {command:40}{shows}" for command, shows in TRY_NEXT]
        print("\n".join(["\ntry next", *lines]), flush=True)
    else:
        print(f"{report.error or 'packets were lost'}\nlogs: {LOGS}", file=sys.stderr)


def _attempt(arguments: argparse.Namespace, report: AnyReport, stage: Stage) -> None:
    """Run the demo; an error is noted in the report."""
    concluded = False

    def keep(vms: Sequence[Vm]) -> None:
        nonlocal concluded
        if arguments.keep:
            _conclude(stage, report, arguments)
            concluded = True
            leave_running(vms)

    try:
        if isinstance(report, switch.Report):
            switch.run(report, LOGS, stage, keep)
        elif isinstance(report, demo_confined.Report):
            demo_confined.run(report, LOGS, stage, keep)
        else:
            run(report, stage, keep)
    except Exception as error:
        report.fail(error)
    report.finish(stage.seconds())
    if not concluded:
        _conclude(stage, report, arguments)


def _kind(arguments: argparse.Namespace) -> type[AnyReport]:
    if arguments.confined:
        return demo_confined.Report
    return switch.Report if arguments.switch else Report


def main() -> int:
    """Run the demo; the exit status says whether all is well."""
    arguments = _parse()
    facts = {"bind": arguments.bind, "data_plane": arguments.data_plane}
    shared = {"shared": demo_confined.SHARED} if arguments.confined else {}
    stage = Stage(
        (SwitchScene if arguments.switch else PairScene)(facts=facts | shared)
    )
    logging.basicConfig(level=logging.INFO, handlers=[LogLines(stage)])
    # As Ctrl-C: everything is taken down on the way out.
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    shutil.rmtree(LOGS, ignore_errors=True)
    if arguments.qemu:
        os.environ["VHOSTPCI_QEMU"] = arguments.qemu
    if arguments.switch and arguments.data_plane == VHOST_USER:
        print("--switch: vhost-user is for two VMs only", file=sys.stderr)
        return 2
    report = _kind(arguments)(**facts)
    try:
        with stage:
            _attempt(arguments, report, stage)
    except KeyboardInterrupt:
        print("\nended", flush=True)
        return 0 if report.ok else 130
    return 0 if report.ok else 1


if __name__ == "__main__":
    sys.exit(main())

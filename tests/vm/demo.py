# SPDX-License-Identifier: Apache-2.0
"""``make demo``: two real VMs, and packets across.

    python -m tests.vm.demo [--bind vfio|uio|sysfs] [--json FILE] [--keep]

Exit status 0 if every step worked.  The drawing is in pair.py.
"""

import argparse
import json
import logging
import shutil
import signal
import sys
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from tests.vm import pair, qemu, traffic
from tests.vm.image import CHECKOUT
from tests.vm.pair import MASTER_ADDRESS, SLAVE_ADDRESS, Pair
from tests.vm.traffic import Ping

LOGS = CHECKOUT / "logs" / "demo"
SECONDS = 5

# What a person can attach to a VM that --keep left running; Ctrl-] ends it.
CONSOLE = "socat -,rawer,escape=0x1d UNIX-CONNECT:{path}"


@dataclass(slots=True)
class Report:
    """What the demo found, under the names that its JSON has."""

    bind: str
    ok: bool = False
    error: str | None = None
    qemu_version: str = field(default_factory=qemu.version)
    accelerator: str = "kvm" if qemu.has_kvm() else "tcg"
    kernel: str | None = None
    ping: Ping | None = None
    tcp_up_mbps: float | None = None
    tcp_down_mbps: float | None = None
    udp_mbps: float | None = None
    ping_after_reload: Ping | None = None
    seconds: float = 0.0

    def fail(self, error: Exception) -> None:
        """Note what went wrong first."""
        self.error = self.error or f"{type(error).__name__}: {error}"

    def finish(self, seconds: float) -> None:
        """Decide whether all went well, after so many seconds."""
        self.seconds = self.seconds or round(seconds, 1)
        rates = (self.tcp_up_mbps, self.tcp_down_mbps, self.udp_mbps)
        pings = (self.ping, self.ping_after_reload)
        self.ok = (
            self.error is None
            and all(run and run.sent == run.received for run in pings)
            and all(rates)
        )


class Progress:
    """A line for each step as it begins, with the time since the start."""

    def __init__(self) -> None:
        self._start = time.monotonic()

    def __call__(self, text: str) -> None:
        print(f"[{self.seconds():5.1f} s] {text}", flush=True)

    def seconds(self) -> float:
        """Seconds since the start."""
        return time.monotonic() - self._start


def perform(link: Pair, report: Report, say: Callable[[str], None]) -> None:
    """All that the demo does with two VMs and a running agent."""
    say("ping both ways")
    link.master.configure()
    link.wait_link()
    report.ping = link.ping_both_ways()
    _measure(link, report, say)
    say("unloading and loading the master's driver, ping again")
    link.master.reload_driver()
    link.master.configure()
    link.wait_link()
    report.ping_after_reload = link.ping_both_ways()


def _measure(link: Pair, report: Report, say: Callable[[str], None]) -> None:
    with traffic.iperf_server(link.slave):
        say("iperf3: TCP from master to slave")
        report.tcp_up_mbps = round(traffic.tcp(link.master, SLAVE_ADDRESS, SECONDS), 1)
        say("iperf3: UDP from master to slave")
        report.udp_mbps = round(traffic.udp(link.master, SLAVE_ADDRESS, SECONDS), 1)
    with traffic.iperf_server(link.master):
        say("iperf3: TCP from slave to master")
        report.tcp_down_mbps = round(
            traffic.tcp(link.slave, MASTER_ADDRESS, SECONDS), 1
        )


def run(report: Report, progress: Progress, keep: Callable[[Pair], None]) -> None:
    """Boot, perform, and call ``keep`` while all still runs."""
    with pair.booted(LOGS, progress) as link:
        report.kernel = link.slave.kernel
        progress(f"vhostpci-guest in the slave, bound by {report.bind}")
        with link.slave.agent(report.bind):
            try:
                perform(link, report, progress)
            except Exception as error:
                report.fail(error)
            report.finish(progress.seconds())
            keep(link)
            progress("shutting down")


def _leave_running(link: Pair) -> None:
    print("\nBoth VMs are up.  A console on each (Ctrl-] leaves it):")
    for vm in (link.master, link.slave):
        command = CONSOLE.format(path=vm.run_dir / "console")
        print(f"  {vm.name:6}  {command}")
    print("Ctrl-C here ends them.", flush=True)
    signal.pause()


def _table(report: Report) -> str:
    rows = [
        ("ping both ways", _ping_text(report.ping)),
        ("TCP, master to slave", _rate_text(report.tcp_up_mbps)),
        ("TCP, slave to master", _rate_text(report.tcp_down_mbps)),
        ("UDP, master to slave", _rate_text(report.udp_mbps)),
        ("ping after the driver's reload", _ping_text(report.ping_after_reload)),
    ]
    head = (
        f"QEMU {report.qemu_version} ({report.accelerator}), Linux {report.kernel}, "
        f"slave bound by {report.bind}"
    )
    lines = [head, *(f"  {name:32}{text}" for name, text in rows)]
    return "\n".join([*lines, f"{'ok' if report.ok else 'FAILED'}"])


def _ping_text(ping: Ping | None) -> str:
    if not ping:
        return "-"
    average = "" if ping.rtt_ms_avg is None else f", {ping.rtt_ms_avg:.2f} ms"
    return f"{ping.received} of {ping.sent} came back{average}"


def _rate_text(rate: float | None) -> str:
    return "-" if rate is None else f"{rate:.0f} Mbit/s"


def _parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="make demo ARGS=...")
    parser.add_argument(
        "--bind", choices=("vfio", "uio", "sysfs"), default="vfio", help="default: vfio"
    )
    parser.add_argument("--json", type=Path, metavar="FILE", help="also write results")
    parser.add_argument(
        "--keep", action="store_true", help="leave the VMs running until Ctrl-C"
    )
    return parser.parse_args()


def _conclude(report: Report, target: Path | None) -> None:
    """Print the table, write the JSON, and say where to look for what failed."""
    print(f"\n{_table(report)} after {report.seconds:.0f} s", flush=True)
    if target:
        content: dict[str, Any] = asdict(report)
        target.write_text(json.dumps(content, indent=2) + "\n")
    if not report.ok:
        print(f"{report.error or 'packets were lost'}\nlogs: {LOGS}", file=sys.stderr)


def _attempt(arguments: argparse.Namespace, report: Report) -> None:
    """Run the demo; what went wrong ends up in the report."""
    progress = Progress()

    def keep(link: Pair) -> None:
        if arguments.keep:
            _conclude(report, arguments.json)
            _leave_running(link)

    try:
        run(report, progress, keep)
    except Exception as error:
        report.fail(error)
    report.finish(progress.seconds())
    _conclude(report, arguments.json)


def main() -> int:
    """Run the demo; the exit status says whether all is well."""
    arguments = _parse()
    logging.basicConfig(format="          %(message)s", level=logging.INFO)
    # As Ctrl-C: everything is taken down on the way out.
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    shutil.rmtree(LOGS, ignore_errors=True)
    report = Report(bind=arguments.bind)
    try:
        _attempt(arguments, report)
    except KeyboardInterrupt:
        print("\nended", flush=True)
        return 0 if report.ok else 130
    return 0 if report.ok else 1


if __name__ == "__main__":
    sys.exit(main())

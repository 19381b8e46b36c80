# SPDX-License-Identifier: Apache-2.0
"""ping and iperf3 from guest to guest, for a bounded time, and their figures."""

import json
import re
import signal
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Protocol

from tests.vm.channel import GuestError
from tests.vm.harness import Result, Vm
from tests.waiting import wait_for

# 5201 in hexadecimal, as /proc/net/tcp6 has a listening socket.
LISTENS = "grep -q ':1451 .* 0A ' /proc/net/tcp /proc/net/tcp6"


@dataclass(frozen=True, slots=True)
class Ping:
    """The figures of one ping run."""

    sent: int
    received: int
    rtt_ms_avg: float | None

    def __add__(self, other: "Ping") -> "Ping":
        """Both runs as one; the average is weighed by what came back."""
        received = self.received + other.received
        total = sum((run.rtt_ms_avg or 0) * run.received for run in (self, other))
        average = round(total / received, 3) if received else None
        return Ping(self.sent + other.sent, received, average)


class Runner(Protocol):
    """A VM, or a process of ours in a network of its own."""

    @property
    def name(self) -> str:
        """What to call it in an error."""
        ...

    def run(self, command: str, *, timeout: float = 30, check: bool = True) -> Result:
        """Run shell text to its end."""
        ...


def ping(source: Runner, address: str, count: int = 10, options: str = "") -> Ping:
    """Ping ``address``; lost packets are a result, not an error."""
    # Once replies have come, ping waits one interval for the last one, not -W.
    output = source.run(
        f"ping -n -q -c {count} -i 0.2 -W 2 {options} {address}",
        timeout=count * 2 + 10,
        check=False,
    ).stdout
    return _parse(output, f"{source.name}: ping {address}")


class Pinging:
    """A ping that runs beside other things; :meth:`result` when it has ended."""

    def __init__(self, source: Vm, address: str, interval: float) -> None:
        self._what = f"{source.name}: ping {address}"
        self._job = source.spawn(f"exec ping -n -i {interval} {address}")

    def wait_answers(self, count: int) -> None:
        """Return once so many answers have come, however slow the guests are."""
        wait_for(
            lambda: self._job.output().count("icmp_seq=") >= count,
            lambda: f"{self._what} has {count} answers: {self._job.output()}",
        )

    def stop(self) -> None:
        """Send no more."""
        self._job.send(signal.SIGINT)
        self._job.wait(10)

    def result(self) -> Ping:
        """Its figures, without one that was under way when it was stopped."""
        output = self._job.output()
        ping = _parse(output, self._what)
        under_way = f"icmp_seq={ping.sent} " not in output
        return replace(ping, sent=ping.sent - under_way)


@contextmanager
def pinging(source: Vm, address: str, interval: float = 0.2) -> Iterator[Pinging]:
    """Ping ``address`` every so many seconds while the block runs."""
    run = Pinging(source, address, interval)
    try:
        yield run
    finally:
        run.stop()


def _parse(output: str, what: str) -> Ping:
    counts = re.search(r"(\d+) packets transmitted, (\d+) received", output)
    if not counts:
        raise GuestError(f"{what} says {output!r}")
    average = re.search(r"rtt [^=]*= [\d.]+/([\d.]+)/", output)
    return Ping(int(counts[1]), int(counts[2]), float(average[1]) if average else None)


@contextmanager
def iperf_server(vm: Vm) -> Iterator[None]:
    """An iperf3 server in the guest while the block runs."""
    job = vm.spawn("exec iperf3 -s")
    vm.run(f"for i in $(seq 50); do {LISTENS} && exit; sleep 0.1; done; exit 1")
    try:
        yield
    finally:
        job.stop()


def tcp(source: Vm, address: str, seconds: int = 5, streams: int = 1) -> float:
    """Mbit/s of so many TCP streams that arrived at ``address``."""
    report = _iperf(source, address, seconds, f"-P {streams}")
    return float(report["sum_received"]["bits_per_second"]) / 1e6


def udp(source: Vm, address: str, seconds: int = 5, rate: str = "200M") -> float:
    """Mbit/s of datagrams that arrived at ``address``, of ``rate`` that were sent."""
    total = _iperf(source, address, seconds, f"-u -b {rate}")["sum"]
    lost = float(total["lost_percent"]) / 100
    return float(total["bits_per_second"]) / 1e6 * (1 - lost)


def _iperf(
    source: Vm, address: str, seconds: int, options: str
) -> dict[str, dict[str, float]]:
    result = source.run(
        f"iperf3 -J -c {address} -t {seconds} --connect-timeout 5000 {options}",
        timeout=seconds + 20,
        check=False,
    )
    if result.rc is None:
        raise GuestError(f"{source.name}: iperf3 to {address} did not end in time")
    report = json.loads(result.stdout)
    if "error" in report:
        raise GuestError(f"{source.name}: iperf3 to {address}: {report['error']}")
    end: dict[str, dict[str, float]] = report["end"]
    return end

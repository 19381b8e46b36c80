# SPDX-License-Identifier: Apache-2.0
"""ping and iperf3 from guest to guest, for a bounded time, and their figures."""

import json
import re
import signal
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Protocol

from tests.vm.channel import GuestError
from tests.vm.harness import Result, Vm

# 5201 in hexadecimal, as /proc/net/tcp6 has a listening socket.
LISTENS = "grep -q ':1451 .* 0A ' /proc/net/tcp /proc/net/tcp6"


@dataclass(frozen=True, slots=True)
class Ping:
    """The figures of one ping run."""

    sent: int
    received: int
    rtt_ms_avg: float | None

    def __add__(self, other: "Ping") -> "Ping":
        """Add up two runs; the average is weighed by what came back."""
        received = self.received + other.received
        total = sum((run.rtt_ms_avg or 0) * run.received for run in (self, other))
        average = round(total / received, 3) if received else None
        return Ping(self.sent + other.sent, received, average)


class Runner(Protocol):
    """A VM, or a process in a network namespace."""

    @property
    def name(self) -> str:
        """The name in error messages."""
        ...

    def run(self, command: str, *, timeout: float = 30, check: bool = True) -> Result:
        """Run shell text to its end."""
        ...


def ping(
    source: Runner,
    address: str,
    count: int = 10,
    options: str = "",
    *,
    apart: bool = False,
) -> Ping:
    """Ping ``address`` until so many answers came; lost packets are no error.

    Args:
        source: the VM that pings.
        address: what it pings.
        count: answers.
        options: further ones of ping(8).
        apart: whether each waits 0.2 s, as for their times; else only the last does.
    """
    # With -c alone, ping waits for the last answer as long as two round trips took: too
    # short where guests wait for a processor.  With -w as well it sends until it has
    # all answers or its time is over.
    limit = count + 20
    what = f"{source.name}: ping {address}"
    together = 1 if apart else max(count - 1, 1)
    output = source.run(
        f"ping -n -c {count} -i 0.2 -l {together} -w {limit} {options} {address}",
        timeout=limit + 10,
        check=False,
    ).stdout
    transmitted = _transmitted(output, what)
    enough = len(_answered(output)) >= count
    # What it sent after the last one that was answered may have been under way.
    return _ping(output, max(_answered(output)) if enough else transmitted)


class Pinging:
    """A ping that runs beside other things; :meth:`result` when it has ended."""

    def __init__(self, source: Vm, address: str, interval: float) -> None:
        self._what = f"{source.name}: ping {address}"
        # -D: a failure shows when each answer came.
        self._job = source.spawn(f"exec ping -n -D -i {interval} {address}")
        self._patience = source.patience
        self._sent = 0

    def output(self) -> str:
        """Return ping's own lines so far."""
        return f"--- {self._what}\n{self._job.output()}"

    def answers(self) -> int:
        """Return how many have come so far."""
        return len(self._answered())

    def wait_answers(self, count: int) -> None:
        """Return once so many more answers have come, however slow the guests are."""
        wanted = len(self._answered()) + count
        self._wait(lambda: len(self._answered()) >= wanted, f"{count} more answers")

    def wait_late_answers(self) -> None:
        """Wait until each echo that is under way now has been answered, or is lost.

        One link does not reorder packets: once a later one is answered, an earlier one
        that is not answered is lost.
        """
        before = len(reports(self._job.output()))
        self._job.send(signal.SIGQUIT)  # ping reports how many it has sent
        self._wait(lambda: len(reports(self._job.output())) > before, "a report")
        self._sent = reports(self._job.output())[-1]
        self._wait(
            lambda: max(self._answered(), default=0) > self._sent,
            f"an answer to one after {self._sent}",
        )

    def stop(self) -> None:
        """Send no more."""
        self._job.send(signal.SIGINT)
        self._job.wait(10)

    def result(self) -> Ping:
        """Return the figures of all echoes up to the last :meth:`wait_late_answers`."""
        return _ping(self._job.output(), self._sent)

    def _answered(self) -> set[int]:
        return _answered(self._job.output())

    def _wait(self, condition: Callable[[], bool], what: str) -> None:
        patience = self._patience(30)
        while not condition():
            if patience.is_over():
                raise GuestError(f"no {what} within {patience}:\n{self.output()}")
            time.sleep(0.2)


@contextmanager
def pinging(
    source: Vm, address: str, interval: float = 0.2, *, ends_without_link: bool = False
) -> Iterator[Pinging]:
    """Ping ``address`` every so many seconds while the block runs.

    Args:
        source: the VM that pings.
        address: what it pings.
        interval: seconds between two echoes.
        ends_without_link: whether the block takes the link away, so that no late
            answers can come, and there is no result.
    """
    run = Pinging(source, address, interval)
    try:
        yield run
        if not ends_without_link:
            run.wait_late_answers()
    finally:
        run.stop()


def _ping(output: str, sent: int) -> Ping:
    """Return the figures of the first ``sent`` echoes."""
    times = {n: ms for n, ms in _answers(output) if n <= sent}
    average = round(sum(times.values()) / len(times), 3) if times else None
    return Ping(sent, len(times), average)


def _answers(output: str) -> list[tuple[int, float]]:
    """Sequence number and milliseconds of each answer that ping reports."""
    found = re.findall(r"bytes from .*icmp_seq=(\d+) .*time=([\d.]+) ms", output)
    return [(int(number), float(ms)) for number, ms in found]


def _answered(output: str) -> set[int]:
    return {number for number, _ in _answers(output)}


def _transmitted(output: str, what: str) -> int:
    found = re.search(r"(\d+) packets transmitted", output)
    if not found:
        raise GuestError(f"{what} says {output!r}")
    return int(found[1])


def reports(output: str) -> list[int]:
    """Return how many echoes were sent, by each report that SIGQUIT has ping write."""
    return [int(sent) for sent in re.findall(r"\d+/(\d+) packets, \d+% loss", output)]


@contextmanager
def iperf_server(vm: Vm) -> Iterator[None]:
    """An iperf3 server in the guest while the block runs."""
    job = vm.spawn("exec iperf3 -s")
    vm.run(f"for i in $(seq 50); do {LISTENS} && exit; sleep 0.1; done; exit 1")
    try:
        yield
    finally:
        job.stop()


def tcp(
    source: Runner,
    address: str,
    seconds: int = 5,
    streams: int = 1,
    *,
    back: bool = False,
) -> float:
    """Return Mbit/s that arrived at ``address`` by so many TCP streams.

    With ``back`` that is what sends, and ``source`` receives.
    """
    options = f"-P {streams}" + " -R" * back
    report = _iperf(source, address, seconds, options)
    return float(report["sum_received"]["bits_per_second"]) / 1e6


def udp(
    source: Vm,
    address: str,
    seconds: int = 5,
    rate: str = "200M",
    length: int | None = None,
) -> float:
    """Return Mbit/s of datagrams that arrived at ``address``; ``rate`` was sent.

    Args:
        source: the VM that sends.
        address: where to.
        seconds: for how long.
        rate: as iperf3 takes it.
        length: bytes of each datagram; by default as many as fit into a packet.
    """
    options = f"-u -b {rate}" + (f" -l {length}" if length else "")
    total = _iperf(source, address, seconds, options)["sum"]
    lost = float(total["lost_percent"]) / 100
    return float(total["bits_per_second"]) / 1e6 * (1 - lost)


def _iperf(
    source: Runner, address: str, seconds: int, options: str
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

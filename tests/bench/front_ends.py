# SPDX-License-Identifier: Apache-2.0
"""The ring behind a real front-end, beside DPDK's program for the same work.

ours        testpmd, virtio-user ── vhostpci-guest ─────────────── TAP
the peer    testpmd, virtio-user ── testpmd, net_vhost, net_tap ── TAP

Both front-ends are the same program, which polls, and sends as fast as the device takes
packets, or has a TAP's packets from it.  What counts is the processor time of the
device's side.  Who polls and does not have its turn is stopped.
"""

import json
import os
import signal
import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from tests.bench.compiling import COMMON, HERE, compile_object, link
from tests.bench.figures import Figure, in_turn
from tests.bench.native import threads_seconds
from tests.bench.plan import CannotMeasure, Plan
from tests.bench.report import PACKET_TIME
from tests.bench.requests import PORT
from tests.frontends.console import Console
from tests.frontends.testpmd import MAC, NO_HUGE, PROMPT, Testpmd
from tests.process.attach import AttachLab
from tests.process.lab import MASTER_ADDRESS, SLAVE_ADDRESS, SLAVE_TAP
from tests.vm.netns import Namespace
from tests.waiting import wait_for

SECONDS, QUICK_SECONDS = 1.0, 0.3
SIZES = (64, 1500)
FRAME = 106
"""Bytes of the packets of echo.c's client."""
RATE = 100_000
"""Packets a second to the driver: the sender needs a processor as well."""
PEER_TAP = "dtap0"
PEER_NAME = "DPDK's testpmd, net_vhost to net_tap"
SETTLE = 0.1


@dataclass(frozen=True, slots=True)
class Side:
    """A front-end, and what serves it."""

    front: Testpmd
    namespace: Namespace
    tap: str
    device: int
    """The process that moves the packets."""
    polls: bool
    """Whether that one has to be stopped as well."""

    @property
    def polling(self) -> list[int]:
        """Return the processes that would keep a processor busy."""
        return [self.front.process.pid, *([self.device] if self.polls else [])]

    def stop(self) -> None:
        """Let others have their turn."""
        for pid in self.polling:
            os.kill(pid, signal.SIGSTOP)

    @contextmanager
    def turn(self) -> Iterator[None]:
        """Run while the block runs."""
        for pid in self.polling[::-1]:
            os.kill(pid, signal.SIGCONT)
        time.sleep(SETTLE)
        try:
            yield
        finally:
            self.stop()

    def packets(self, direction: str) -> int:
        """Return how many packets the TAP has taken ("rx"), or handed out ("tx")."""
        words = ("ip", "-j", "-s", "link", "show", self.tap)
        (shown,) = json.loads(self.namespace.output(*words))
        return int(shown["stats64"][direction]["packets"])

    def sent(self, seconds: float) -> float:
        """Return the device's ns of processor time for a packet from the driver."""
        return self._cost("rx", lambda: time.sleep(seconds))

    def received(self, client: Path, seconds: float) -> float:
        """Return the same for a packet to the driver, which answers none."""
        words = ("client", MASTER_ADDRESS, str(PORT), str(RATE), f"{seconds:g}")
        argv = [*self.namespace.prefix, str(client), *words]
        run = partial(subprocess.run, argv, check=True, stdout=subprocess.DEVNULL)
        return self._cost("tx", run)

    def _cost(self, direction: str, traffic: Callable[[], object]) -> float:
        with self.turn():
            packets, spent = self.packets(direction), threads_seconds(self.device)
            traffic()
            spent = threads_seconds(self.device) - spent
            packets = self.packets(direction) - packets
        if not packets:
            raise CannotMeasure(f"no packet crossed {self.tap}")
        return 1e9 * spent / packets

    def forward(self, mode: str, size: int) -> None:
        """Have the front-end only receive, or only send packets of a size."""
        with self.turn():
            for line in ("stop", f"set fwd {mode}", f"set txpkts {size}", "start"):
                self.front.run(line)

    def know_the_driver(self) -> None:
        """Have the TAP's namespace send to the driver without a question."""
        self.namespace.run(f"ip addr replace {SLAVE_ADDRESS}/24 dev {self.tap}")
        self.namespace.run(
            f"ip neigh replace {MASTER_ADDRESS} lladdr {MAC} dev {self.tap}"
        )


def front_end(socket: Path, directory: Path) -> Testpmd:
    """Start the driver's side."""
    return Testpmd(socket, directory, forward="txonly")


@contextmanager
def ours(directory: Path) -> Iterator[Side]:
    """A daemon and its agent."""
    directory.mkdir()
    with AttachLab(directory) as lab:
        lab.start()
        with front_end(lab.socket, directory) as front:
            front.started()
            lab.wait_carrier("UP")
            yield Side(front, lab.slave, SLAVE_TAP, lab.agent.process.pid, False)


def back_end_command(socket: Path) -> list[str]:
    """Return the peer's command: packets of a vhost-user socket go to a TAP."""
    cores = ",".join(map(str, sorted(os.sched_getaffinity(0))))
    return [
        *("dpdk-testpmd", "--lcores", f"0@({cores}),1@({cores})"),
        *("--no-pci", "--no-telemetry", *NO_HUGE),
        *(
            "--vdev",
            f"net_vhost0,iface={socket}",
            "--vdev",
            f"net_tap0,iface={PEER_TAP}",
        ),
        *("--", "--interactive", "--auto-start", "--forward-mode=io"),
        "--total-num-mbufs=8192",
    ]


@contextmanager
def peer(directory: Path) -> Iterator[Side]:
    """A testpmd in place of daemon and agent."""
    for name in ("front", "back"):
        (directory / name).mkdir(parents=True)
    socket = directory / "vhost"
    with ExitStack() as stack:
        namespace = stack.enter_context(Namespace())
        back = Console(
            [
                *("setpriv", "--pdeathsig", "KILL", *namespace.prefix),
                *("stdbuf", "-oL", *back_end_command(socket)),
            ],
            directory / "back.log",
            {**os.environ, "RUNTIME_DIRECTORY": str(directory / "back")},
        )
        stack.enter_context(back)
        wait_for(lambda: back.ended() or PROMPT in back.log, "DPDK's back-end starts")
        if back.ended():
            raise CannotMeasure(f"DPDK's back-end: {back.log.splitlines()[-1:]}")
        front = stack.enter_context(front_end(socket, directory / "front"))
        front.started()
        yield Side(front, namespace, PEER_TAP, back.process.pid, True)


@contextmanager
def both(directory: Path) -> Iterator[tuple[Side, Side]]:
    """Start both sides; both are stopped."""
    with ExitStack() as stack:
        first = stopped(stack, ours(directory / "ours"))
        yield first, stopped(stack, peer(directory / "peer"))


def stopped(stack: ExitStack, starting: AbstractContextManager[Side]) -> Side:
    """Start a side, and stop it until it has its turn."""
    side = stack.enter_context(starting)
    side.know_the_driver()
    side.stop()
    # A stopped one would not end.
    stack.callback(partial(_go_on, side))
    return side


def _go_on(side: Side) -> None:
    for pid in side.polling:
        os.kill(pid, signal.SIGCONT)


def figures(plan: Plan, directory: Path) -> Iterator[Figure]:
    """Measure packets of each size from the driver, then small ones to it."""
    seconds = QUICK_SECONDS if plan.quick else SECONDS
    client = link([compile_object(HERE / "echo.c", COMMON, directory)], directory / "c")
    with both(directory) as sides:
        for size in SIZES:
            for side in sides:
                side.forward("txonly", size)
            measures = [partial(side.sent, seconds) for side in sides]
            yield _figure(f"tx {size}", in_turn(plan.runs, *measures))
        for side in sides:
            side.forward("rxonly", SIZES[0])
        measures = [partial(side.received, client, seconds) for side in sides]
        yield _figure(f"rx {FRAME}", in_turn(plan.runs, *measures))


def _figure(name: str, runs: tuple[list[float], list[float]]) -> Figure:
    return Figure(
        part="ring",
        name=f"testpmd as the front-end, {name}",
        unit=PACKET_TIME,
        better="lower",
        peer_name=PEER_NAME,
        ours_runs=tuple(runs[0]),
        peer_runs=tuple(runs[1]),
    )

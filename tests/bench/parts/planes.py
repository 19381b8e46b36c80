# SPDX-License-Identifier: Apache-2.0
"""The ring driver beside a back-end that has the rings by --data-plane vhost-user.

ours        testpmd, virtio-user ── vhostpci-guest ─────────────── TAP
the peer    testpmd, virtio-user ── testpmd, net_vhost, net_tap ── TAP

The peer's rings were given to it by an agent, which has no part in a packet.  Both
front-ends poll; so does the peer, and without its turn it is stopped.  The slave's
kernel answers the pings.
"""

import os
import re
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np

from tests.backends import dpdk
from tests.backends.lab import BackEndLab
from tests.bench import front_ends
from tests.bench.compiling import COMMON, HERE, compile_object, link, require
from tests.bench.figures import Figure, in_turn
from tests.bench.front_ends import FRAME, PEER_TAP, SIZES, Side
from tests.bench.plan import CannotMeasure, Part, Plan
from tests.bench.report import PACKET_TIME
from tests.fakes.netns import private_network
from tests.pings import ping
from tests.process.lab import MASTER_ADDRESS

SECONDS, QUICK_SECONDS = 1.0, 0.3
PINGS, QUICK_PINGS = 300, 60
PEER_NAME = "--data-plane vhost-user, DPDK's testpmd to net_tap"
PROGRAM = ("dpdk-testpmd",)


@contextmanager
def served_by_dpdk(directory: Path) -> Iterator[Side]:
    """A daemon, an agent, and the back-end to which it gives the rings."""
    directory.mkdir()
    with ExitStack() as stack:
        lab = stack.enter_context(BackEndLab(directory))
        lab.start_both()
        back = dpdk.BackEnd(
            *(PROGRAM, directory / "back", dpdk.vhost(lab.back_end, client=True)),
            f"net_tap0,iface={PEER_TAP}",
            forward="io",
            prefix=tuple(lab.slave.prefix),
        )
        stack.callback(back.kill)
        back.started()
        front = front_ends.front_end(lab.socket, directory)
        stack.enter_context(front).started()
        lab.wait_running()
        yield Side(front, lab.slave, PEER_TAP, back.process.pid, True)


@contextmanager
def both(directory: Path) -> Iterator[tuple[Side, Side]]:
    """Start both sides; both are stopped."""
    with ExitStack() as stack:
        stack.enter_context(private_network())
        makers = {"ring": front_ends.ours, "vhost-user": served_by_dpdk}
        ours, peer = (
            front_ends.stopped(stack, maker(directory / name))
            for name, maker in makers.items()
        )
        yield ours, peer


def round_trip(side: Side, count: int) -> float:
    """Return the microseconds of a round trip to the front-end, in the fastest tenth.

    Raises:
        CannotMeasure: too few came back.
    """
    words = (*ping(count, "-i", "0.005"), MASTER_ADDRESS)
    with side.turn():
        text = side.namespace.output(*words)
    trips = [1000 * float(found) for found in re.findall(r"time=([\d.]+) ms", text)]
    if len(trips) < count:
        raise CannotMeasure(f"{len(trips)} of {count} pings came back")
    return float(np.percentile(trips, 10))


def costs(plan: Plan, client: Path, sides: tuple[Side, Side]) -> Iterator[Figure]:
    """Measure the processor time of a packet, from the driver and to it."""
    seconds = QUICK_SECONDS if plan.quick else SECONDS
    for size in SIZES:
        for side in sides:
            side.forward("txonly", size)
        runs = in_turn(plan.runs, *(partial(side.sent, seconds) for side in sides))
        yield figure(f"a packet of {size} bytes from the master", PACKET_TIME, runs)
    for side in sides:
        side.forward("rxonly", SIZES[0])
    measures = [partial(side.received, client, seconds) for side in sides]
    runs = in_turn(plan.runs, *measures)
    yield figure(f"a packet of {FRAME} bytes to the master", PACKET_TIME, runs)


def latencies(plan: Plan, sides: tuple[Side, Side]) -> Iterator[Figure]:
    """Measure round trips between the slave's kernel and the front-end."""
    count = QUICK_PINGS if plan.quick else PINGS
    for side in sides:
        side.forward("icmpecho", SIZES[0])
    runs = in_turn(plan.runs, *(partial(round_trip, side, count) for side in sides))
    yield figure("round trip, in the fastest tenth", "us", runs)


def figure(name: str, unit: str, runs: tuple[list[float], list[float]]) -> Figure:
    return Figure(
        part="planes",
        name=name,
        unit=unit,
        better="lower",
        peer_name=PEER_NAME,
        ours_runs=tuple(runs[0]),
        peer_runs=tuple(runs[1]),
    )


def measure(plan: Plan) -> list[Figure]:
    """Measure both data planes, in turn.

    Raises:
        CannotMeasure: we are not root, or there is no DPDK.
    """
    if os.geteuid():
        raise CannotMeasure("it makes network namespaces and TAPs, which needs root")
    require("dpdk-testpmd", "ping", "ip")
    with TemporaryDirectory(prefix="vhp-bench-") as temporary:
        directory = Path(temporary)
        source = compile_object(HERE / "echo.c", COMMON, directory)
        client = link([source], directory / "client")
        with both(directory) as sides:
            return [*costs(plan, client, sides), *latencies(plan, sides)]


PART = Part("planes", "the ring driver beside a back-end of vhost-user", measure)

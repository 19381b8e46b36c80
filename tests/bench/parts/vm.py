# SPDX-License-Identifier: Apache-2.0
"""From VM to VM, with stock QEMU's ways between two VMs as the peers: ../two_vms.py.

Both VMs are booted once; in each round every contender has its turn.  With KVM where
there is one: the figures of an emulated processor say little of a real one.
"""

import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory

from tests.bench.compiling import require
from tests.bench.figures import Better, Figure, in_rounds
from tests.bench.plan import CannotMeasure, Part, Plan
from tests.bench.two_vms import FIRST, PEERS, SECOND, Card, peer_name, two_vms
from tests.vm import qemu, traffic
from tests.vm.channel import GuestError
from tests.vm.harness import Vm
from tests.vm.pair import MASTER_ADDRESS, SLAVE_ADDRESS, Pair

WARM_UP = 1
"""Seconds of TCP each way after an agent's start, which are not measured."""
SYSFS = "sysfs"
"""The binding that needs nothing; the peer of the others where there are caches."""


@dataclass(frozen=True, slots=True)
class Scale:
    """How much one turn measures, and which bindings have a turn."""

    bindings: tuple[str, ...]
    seconds: int
    """Of each iperf3."""
    pings: int
    udp_rate: str
    """What is sent, as iperf3 takes it; 0 is as much as possible."""

    @classmethod
    def of(cls, plan: Plan, *, kvm: bool) -> "Scale":
        """Return what fits into minutes.

        A guest of TCG that sends as much as possible starves the other one.
        """
        if plan.quick:
            bindings: tuple[str, ...] = (SYSFS, "kmod") if kvm else ("kmod",)
        else:
            bindings = (*((SYSFS,) if kvm else ()), "vfio", "kmod")
        rate = "0" if kvm else "200M"
        return cls(bindings, *((1, 10) if plan.quick else (2, 20)), rate)


@dataclass(frozen=True, slots=True)
class Round:
    """What one contender has reached in one round."""

    ping: float
    """Milliseconds."""
    tcp_from: float
    """Mbit/s from the first VM, which is the master of ours."""
    tcp_to: float
    udp: float
    """Mbit/s that arrived, from the first VM."""


METRICS: dict[str, tuple[str, Better, Callable[[Round], float]]] = {
    "ping": ("ms", "lower", lambda one: one.ping),
    "TCP from the master": ("Mbit/s", "higher", lambda one: one.tcp_from),
    "TCP to the master": ("Mbit/s", "higher", lambda one: one.tcp_to),
    "UDP 1,400 from the master": ("Mbit/s", "higher", lambda one: one.udp),
}

Contender = Callable[[], Round]


def between(first: Vm, second: Vm, addresses: Sequence[str], scale: Scale) -> Round:
    """Measure one way between two VMs, whose link is up, and whose iperf3 listen."""
    ping = traffic.ping(
        first, addresses[1], scale.pings, "-i 0.05", apart=True
    ).rtt_ms_avg
    if ping is None:
        raise CannotMeasure(f"no ping of {first.name}'s comes back")
    seconds = scale.seconds
    return Round(
        ping,
        tcp_from=traffic.tcp(first, addresses[1], seconds),
        tcp_to=traffic.tcp(second, addresses[0], seconds),
        udp=traffic.udp(first, addresses[1], seconds, scale.udp_rate, length=1400),
    )


def ours(link: Pair, bind: str, scale: Scale) -> Round:
    """Measure our link with an agent that binds its device that way.

    The agent runs in its turn only: its heartbeat takes time from what others measure.
    """
    with link.slave.agent(bind):
        link.master.configure()
        link.wait_link()
        # A new process touches each page of the window for the first time, and TCG has
        # to translate it; the peers' kernels were warm a round ago.
        traffic.tcp(link.master, SLAVE_ADDRESS, WARM_UP)
        traffic.tcp(link.slave, MASTER_ADDRESS, WARM_UP)
        addresses = (MASTER_ADDRESS, SLAVE_ADDRESS)
        return between(link.master, link.slave, addresses, scale)


@contextmanager
def contenders(scale: Scale) -> Iterator[dict[str, Contender]]:
    """Boot both VMs; return how to measure each contender."""
    with ExitStack() as stack:
        logs = Path(stack.enter_context(TemporaryDirectory()))
        link = stack.enter_context(two_vms(logs))
        for vm in (link.master, link.slave):
            stack.enter_context(traffic.iperf_server(vm))
        found: dict[str, Contender] = {
            bind: partial(ours, link, bind, scale) for bind in scale.bindings
        }
        for kind in PEERS:
            addresses = [Card(kind, vm).address for vm in (FIRST, SECOND)]
            vms = (link.master, link.slave)
            found[peer_name(kind)] = partial(between, *vms, addresses, scale)
        yield found


def measure_rounds(count: int, all_of_them: dict[str, Contender]) -> list[Figure]:
    """Give each contender its turn in each round."""
    rounds = in_rounds(count, all_of_them)
    return [
        Figure(
            part="vm",
            name=f"{bind}, {name}, beside {peer}",
            unit=unit,
            better=better,
            peer_name=peer,
            ours_runs=tuple(map(value, rounds[bind])),
            peer_runs=tuple(map(value, rounds[peer])),
        )
        for bind, peer in pairs(list(rounds))
        for name, (unit, better, value) in METRICS.items()
    ]


def pairs(names: Sequence[str]) -> list[tuple[str, str]]:
    """Return who is compared with whom: all of ours with all peers, and with sysfs."""
    peers = [name for name in names if name.startswith(peer_name(""))]
    ours = [name for name in names if name not in peers]
    with_sysfs = [(name, SYSFS) for name in ours if SYSFS in ours and name != SYSFS]
    return [*((name, peer) for name in ours for peer in peers), *with_sysfs]


def measure(plan: Plan) -> list[Figure]:
    """Boot, and measure."""
    if os.geteuid():
        raise CannotMeasure("it makes network namespaces and TAPs, which needs root")
    require("qemu-system-x86_64", "ip")
    kvm = qemu.has_kvm()
    print(f"QEMU {qemu.version()}, {'KVM' if kvm else 'TCG, no KVM'}", flush=True)
    try:
        with contenders(Scale.of(plan, kvm=kvm)) as found:
            return measure_rounds(plan.runs, found)
    except GuestError as error:
        raise CannotMeasure(str(error)) from error


PART = Part("vm", "from VM to VM, beside stock QEMU's ways", measure)

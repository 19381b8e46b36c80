# SPDX-License-Identifier: Apache-2.0
"""From VM to VM, with stock QEMU's ways between two VMs as the peers.

ours        master VM ── vhostpci-host ── slave VM with the agent (vfio, then kmod)
the peers   VM ── tap ── bridge ── tap ── VM;  VM ── socket ── VM;  VM ── stream ── VM

All VMs are booted once and stay; in each round every contender has its turn.  With KVM
where there is one: the figures of an emulated processor say little of a real one.
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
from tests.vm import image, pair, qemu, traffic
from tests.vm.channel import GuestError
from tests.vm.harness import Vm
from tests.vm.netns import Namespace
from tests.vm.pair import MASTER_ADDRESS, SLAVE_ADDRESS, Pair
from tests.vm.yardstick import ADDRESSES, bridged_guests

SECONDS = 3
QUICK_SECONDS = 1
PINGS = 20
BINDINGS = ("vfio", "kmod")
PORT = 4711
PEER = "-netdev {}"


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


def between(first: Vm, second: Vm, addresses: Sequence[str], seconds: int) -> Round:
    """Measure one way between two VMs, whose link is up."""
    ping = traffic.ping(first, addresses[1], PINGS).rtt_ms_avg
    if ping is None:
        raise CannotMeasure(f"no ping of {first.name}'s comes back")
    with traffic.iperf_server(second):
        tcp_from = traffic.tcp(first, addresses[1], seconds)
        udp = traffic.udp(first, addresses[1], seconds, length=1400)
    with traffic.iperf_server(first):
        tcp_to = traffic.tcp(second, addresses[0], seconds)
    return Round(ping, tcp_from, tcp_to, udp)


def ours(link: Pair, bind: str, seconds: int) -> Round:
    """Measure our link with an agent that binds its device that way."""
    with link.slave.agent(bind):
        link.master.configure()
        link.wait_link()
        addresses = (MASTER_ADDRESS, SLAVE_ADDRESS)
        return between(link.master, link.slave, addresses, seconds)


SOCKETS = {
    "socket": (f"listen=127.0.0.1:{PORT}", f"connect=127.0.0.1:{PORT}"),
    "stream": (
        f"server=on,addr.type=inet,addr.host=127.0.0.1,addr.port={PORT}",
        f"server=off,addr.type=inet,addr.host=127.0.0.1,addr.port={PORT}",
    ),
}


@contextmanager
def socket_guests(logs: Path, kind: str) -> Iterator[tuple[Vm, Vm]]:
    """Two guests whose cards are connected by TCP, with addresses."""
    guest = image.build()
    with ExitStack() as stack:
        namespace = stack.enter_context(Namespace())
        namespace.run("ip link set lo up")
        vms = []
        for number, name in enumerate(ADDRESSES):
            args = [
                *("-netdev", f"{kind},id=net0,{SOCKETS[kind][number]}"),
                *(
                    "-device",
                    f"virtio-net-pci,netdev=net0,mac=52:54:00:79:00:0{number}",
                ),
            ]
            vm = Vm(f"{kind}-{name}", guest, logs=logs, args=args, namespace=namespace)
            stack.enter_context(vm)
            vm.wait_ready()  # and it listens: the second one does not try again
            vm.run(f"ip addr add {ADDRESSES[name]}/24 dev eth0 && ip link set eth0 up")
            vms.append(vm)
        first, second = vms
        yield first, second


@contextmanager
def contenders(seconds: int) -> Iterator[dict[str, Contender]]:
    """Boot all VMs; return how to measure each contender."""
    with ExitStack() as stack:
        logs = Path(stack.enter_context(TemporaryDirectory()))
        link = stack.enter_context(pair.booted(logs, module="kmod" in BINDINGS))
        found: dict[str, Contender] = {
            bind: partial(ours, link, bind, seconds) for bind in BINDINGS
        }
        addresses = tuple(ADDRESSES.values())
        peers = {"tap": bridged_guests(logs)}
        peers |= {kind: socket_guests(logs, kind) for kind in SOCKETS}
        for kind, guests in peers.items():
            vms = stack.enter_context(guests)
            found[PEER.format(kind)] = partial(between, *vms, addresses, seconds)
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
        for bind in BINDINGS
        for peer in rounds
        if peer not in BINDINGS
        for name, (unit, better, value) in METRICS.items()
    ]


def measure(plan: Plan) -> list[Figure]:
    """Boot, and measure."""
    if os.geteuid():
        raise CannotMeasure("it makes network namespaces and TAPs, which needs root")
    require("qemu-system-x86_64", "ip")
    accelerator = "KVM" if qemu.has_kvm() else "TCG, no KVM"
    print(f"QEMU {qemu.version()}, {accelerator}", flush=True)
    try:
        with contenders(QUICK_SECONDS if plan.quick else SECONDS) as found:
            return measure_rounds(plan.runs, found)
    except GuestError as error:
        raise CannotMeasure(str(error)) from error


PART = Part("vm", "from VM to VM, beside stock QEMU's ways", measure)

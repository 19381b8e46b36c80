# SPDX-License-Identifier: Apache-2.0
"""Who answers the requests of the part "latency", each reached by a client of its own.

    client ── vp0 ── vhostpci-guest ───────── eth0 ┐
    client ── vp0 ── vhostpci-guest, polls ── eth1 ├ one VM, echo.c
    client ── tap0 ── -netdev tap ─────────── eth2 ┘
    client ── tap0 ── echo.c
    client ── tap0 ── echo.c, polls

The VM is one: its kernel and its program are the same on each way, and only the card
that a request comes by differs.  Its processor sleeps until an interrupt comes.
"""

import json
import signal
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from tests.bench.requests import PORT, Client, Sample, client
from tests.process.attach import AttachLab
from tests.process.lab import ATTACH, SLAVE_TAP
from tests.process.program import Program
from tests.vm import image, qemu
from tests.vm.harness import Vm
from tests.vm.netns import Namespace

OURS, POLLING = "ours", "ours, polling"
VM_TAP = "-netdev tap"
ALONE, ALONE_POLLING = "a TAP alone", "a TAP alone, polling"
AGENTS: dict[str, tuple[str, ...]] = {OURS: (), POLLING: ("--poll-us", "1000")}
"""By name: options of the agent."""
MEMORY = "512M"
TAP = "tap0"
MAC = "52:54:00:80:00:01"
"""Of what answers behind a TAP that is alone."""


@dataclass(frozen=True, slots=True)
class Net:
    """The addresses of one card's network."""

    number: int

    @property
    def ours(self) -> str:
        """Of the namespace with the client."""
        return f"10.80.{self.number}.2"

    @property
    def theirs(self) -> str:
        """Of what answers."""
        return f"10.80.{self.number}.1"


def lab_with_agent(
    stack: ExitStack, directory: Path, net: Net, *options: str
) -> AttachLab:
    """Start a daemon and an agent that waits for a master."""
    directory.mkdir()
    lab = stack.enter_context(AttachLab(directory))
    lab.start_daemon(*ATTACH)
    lab.start_agent(*options)
    lab.wait_carrier("NO-CARRIER")
    lab.slave.run(f"ip addr add {net.ours}/24 dev {SLAVE_TAP}")
    return lab


def master_card(lab: AttachLab, name: str) -> list[str]:
    """Return QEMU's arguments for the lab's card, as the product prints them."""
    words = ["--role", "master", *ATTACH, "--memory", MEMORY, "--json"]
    words += ["--socket-path", str(lab.socket), "--qemu", qemu.binary()]
    words += [] if qemu.has_kvm() else ["--tcg"]
    args: list[str] = json.loads(lab.run_host("qemu-args", name, *words).stdout)
    return args


def without_memory(args: Sequence[str]) -> list[str]:
    """Leave out what a VM has once, however many cards it has."""
    pairs = zip(args[::2], args[1::2], strict=True)
    once = ("-m", "-machine", "-object")
    return [word for pair in pairs if pair[0] not in once for word in pair]


def tap_card(namespace: Namespace, net: Net) -> list[str]:
    """Make a TAP; return QEMU's arguments for a card with it."""
    namespace.run(f"ip tuntap add {TAP} mode tap vnet_hdr")
    namespace.run(f"ip addr add {net.ours}/24 dev {TAP}")
    namespace.run(f"ip link set {TAP} up")
    return [
        *("-netdev", f"tap,id=tap,ifname={TAP},script=no,downscript=no"),
        *("-device", "virtio-net-pci,netdev=tap,mac=52:54:00:80:00:02"),
    ]


@contextmanager
def behind_a_vm(programs: "Programs", directory: Path) -> Iterator[dict[str, Client]]:
    """The VM with three cards."""
    nets = [Net(number) for number in range(3)]
    with ExitStack() as stack:
        labs = [
            lab_with_agent(stack, directory / f"lab{net.number}", net, *options)
            for net, options in zip(nets, AGENTS.values(), strict=False)
        ]
        cards = [master_card(lab, f"net{n}") for n, lab in enumerate(labs)]
        args = [*cards[0], *(word for c in cards[1:] for word in without_memory(c))]
        namespace = stack.enter_context(Namespace())
        args += tap_card(namespace, nets[2])
        # QEMU opens its TAP in the namespace where it runs.
        vm = Vm(
            *("latency", image.build()), logs=directory, args=args, namespace=namespace
        )
        stack.enter_context(vm).wait_ready()
        answer(vm, programs.echo, nets)
        for lab in labs:
            lab.wait_carrier("UP")
        prefixes = [*(lab.slave.prefix for lab in labs), namespace.prefix]
        names = (*AGENTS, VM_TAP)
        yield {
            name: partial(client, programs.client, prefix, net.theirs)
            for name, prefix, net in zip(names, prefixes, nets, strict=True)
        }


def answer(vm: Vm, echo: Path, nets: Sequence[Net]) -> None:
    """Give the VM's cards their addresses, and have the program answer."""
    for net in nets:
        vm.run(
            f"ip addr add {net.theirs}/24 dev eth{net.number}"
            f" && ip link set eth{net.number} up"
        )
    vm.put("/run/echo", echo.read_bytes(), 0o755)
    vm.spawn(f"exec /run/echo udp {PORT}").wait_said("ready")


@contextmanager
def alone(programs: "Programs", log: Path, *, spin: bool = False) -> Iterator[Client]:
    """A TAP, and the program that answers behind it."""
    net = Net(3)
    with ExitStack() as stack:
        namespace = stack.enter_context(Namespace())
        words = ["tap", TAP, *(["spin"] if spin else [])]
        echo = Program([*namespace.prefix, str(programs.client), *words], log)
        stack.callback(echo.close)
        echo.wait_log("ready")
        namespace.run(f"ip addr add {net.ours}/24 dev {TAP}")
        namespace.run(f"ip link set {TAP} up")
        namespace.run(f"ip neigh replace {net.theirs} lladdr {MAC} dev {TAP}")
        send = partial(client, programs.client, namespace.prefix, net.theirs)
        yield awake(echo, send) if spin else send


def awake(program: Program, send: Client) -> Client:
    """Stop a program that polls, but for the time in which it has to answer."""

    def send_awake(rate: float, seconds: float) -> Sample:
        program.send(signal.SIGCONT)
        try:
            return send(rate, seconds)
        finally:
            program.send(signal.SIGSTOP)

    program.send(signal.SIGSTOP)
    return send_awake


@dataclass(frozen=True, slots=True)
class Programs:
    """The program of echo.c, compiled."""

    client: Path
    echo: Path
    """For a guest that may have other libraries."""


@contextmanager
def responders(programs: Programs, directory: Path) -> Iterator[dict[str, Client]]:
    """Start all that answer; return by name how to send them requests."""
    with ExitStack() as stack:
        found = stack.enter_context(behind_a_vm(programs, directory))
        for name, spin in ((ALONE, False), (ALONE_POLLING, True)):
            log = directory / f"{'polling' if spin else 'sleeping'}.log"
            found[name] = stack.enter_context(alone(programs, log, spin=spin))
        yield found

# SPDX-License-Identifier: Apache-2.0
"""Two VMs with our link between them, and stock QEMU's ways, each by its own card.

    master VM                                     slave VM
    eth0 ── vhostpci-host ──────────────── the agent ── vp0
    eth1 ── -netdev tap ──── bridge ──── -netdev tap ── eth0
    eth2 ── -netdev socket ─────────── -netdev socket ── eth1
    eth3 ── -netdev stream ─────────── -netdev stream ── eth2

The VMs are the same for every way, and an idle card takes no time.
"""

import os
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from functools import cache
from pathlib import Path

from tests.vm import image, qemu, wheels
from tests.vm.daemon import Daemon
from tests.vm.harness import Vm
from tests.vm.kernels import THIS_DEBIAN
from tests.vm.netns import Namespace
from tests.vm.pair import Master, Pair, Slave

MEMORY = "512M"
PEERS = ("tap", "socket", "stream")
"""Kinds of QEMU's -netdev, in the order of the cards."""
FIRST, SECOND = 1, 2
"""The master's and the slave's number."""


@cache
def vhost() -> bool:
    """Whether QEMU's TAP has its packets moved by the kernel: vhost-net, with KVM.

    The device node may be there without its module.
    """
    try:
        os.close(os.open("/dev/vhost-net", os.O_RDWR | os.O_CLOEXEC))
    except OSError:
        return False
    return qemu.has_kvm()


def peer_name(kind: str) -> str:
    """Return the option that a user gives QEMU."""
    return f"-netdev {kind}" + ",vhost=on" * (kind == "tap" and vhost())


@dataclass(frozen=True, slots=True)
class Card:
    """A card of one VM on one of the peers' ways."""

    kind: str
    vm: int

    @property
    def number(self) -> int:
        """Of the way."""
        return PEERS.index(self.kind) + 1

    @property
    def address(self) -> str:
        """Of the card."""
        return f"10.81.{self.number}.{self.vm}"

    @property
    def interface(self) -> str:
        """Its name in the guest: the master's first card is ours."""
        return f"eth{self.number - (self.vm == SECOND)}"

    @property
    def tap(self) -> str:
        """Return the name of its TAP on the bridge."""
        return f"tap-{self.vm}"

    def qemu_args(self) -> list[str]:
        """Return QEMU's arguments; the slave listens for the master."""
        mac = f"52:54:00:81:0{self.number}:0{self.vm}"
        return [
            *("-netdev", f"{self.kind},id={self.kind},{self._back_end()}"),
            *("-device", f"virtio-net-pci,netdev={self.kind},mac={mac}"),
        ]

    def _back_end(self) -> str:
        listens = self.vm == SECOND
        port = 4711 + self.number
        if self.kind == "tap":
            return f"ifname={self.tap},script=no,downscript=no{',vhost=on' * vhost()}"
        if self.kind == "socket":
            return f"{'listen' if listens else 'connect'}=127.0.0.1:{port}"
        server = "on" if listens else "off"
        return f"server={server},addr.type=inet,addr.host=127.0.0.1,addr.port={port}"


def cards(vm: int) -> list[Card]:
    """Return the peers' cards of one VM."""
    return [Card(kind, vm) for kind in PEERS]


def card_args(vm: int) -> list[str]:
    """Return QEMU's arguments for these."""
    return [word for card in cards(vm) for word in card.qemu_args()]


def prepare(namespace: Namespace) -> None:
    """Make the bridge with its TAPs, and what the others need."""
    for command in ("set lo up", "add br0 type bridge", "set br0 up"):
        namespace.run(f"ip link {command}")
    for vm in (FIRST, SECOND):
        tap = Card("tap", vm).tap
        namespace.run(f"ip tuntap add {tap} mode tap vnet_hdr")
        namespace.run(f"ip link set {tap} up master br0")


def set_up(vm: Vm, number: int) -> None:
    """Give the peers' cards of a VM their addresses."""
    for card in cards(number):
        vm.run(
            f"ip addr add {card.address}/24 dev {card.interface}"
            f" && ip link set {card.interface} up"
        )


@contextmanager
def two_vms(logs: Path) -> Iterator[Pair]:
    """Boot both VMs; no agent runs."""
    ours = wheels.guest_wheels()
    guest = image.build(ours, THIS_DEBIAN, module=True)
    with ExitStack() as stack:
        daemon = stack.enter_context(Daemon("bench", memory=MEMORY, logs=logs))
        namespace = stack.enter_context(Namespace())
        prepare(namespace)
        args = [*daemon.qemu_args("slave"), *THIS_DEBIAN.qemu_args()]
        slave = Slave(
            *("slave", guest),
            logs=logs,
            args=[*args, *card_args(SECOND)],
            iommu=True,
            namespace=namespace,
        )
        master = Master(
            *("master", guest),
            logs=logs,
            args=[*daemon.qemu_args("master"), *card_args(FIRST)],
            namespace=namespace,
        )
        # One after the other: the slave's QEMU has to listen when the master's starts,
        # which does not try again.
        for vm, number in ((slave, SECOND), (master, FIRST)):
            stack.enter_context(vm).wait_ready()
            set_up(vm, number)
        yield Pair(daemon, master, slave)

# SPDX-License-Identifier: Apache-2.0
"""A master whose kernel is this machine's, with a driver in C: card.c.

    UDP ── mtap0 ── card.c ── rings ── vhostpci-guest ── vp0 ── UDP
    (this namespace)                                     (the slave's)

It has the UDP segments (USO) that neither User Mode Linux's driver nor QEMU, for a
vhost-user card, has yet.
"""

import os
import subprocess
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path

from tests.bench.compiling import COMMON, HERE, compile_object, link
from tests.fakes.frontend import RingAt
from tests.fakes.netns import private_network
from tests.fakes.tap import HEADER
from tests.process.attach import AttachLab
from tests.process.lab import MASTER_ADDRESS, SLAVE_ADDRESS, set_up_master
from tests.process.master import BUFFERS, RINGS, Master, Ram, header_length
from tests.process.program import Program
from tests.vm.netns import Namespace
from vhostpci_shared.virtio import Feature

# As in card.c.
NUM = 256
RING_BYTES = 0x10000
MEMORY = 64 << 20
UNKNOWN = (
    Feature.F_EVENT_IDX
    | Feature.F_IN_ORDER
    | Feature.F_INDIRECT_DESC
    | Feature.NET_F_MRG_RXBUF
)
"""What card.c cannot do."""
USO = Feature.NET_F_HOST_USO | Feature.NET_F_GUEST_USO4 | Feature.NET_F_GUEST_USO6
PAYLOAD = 1472
"""Of a UDP datagram that makes an IP packet of 1,500 bytes."""
DATAGRAMS = 44
"""In a segment of 64 KiB, or what the kernel makes datagrams of."""


class FastMaster(Master):
    """A master whose packets are moved by card.c."""

    def start_card(self, program: Path, log: Path, *, without: Feature) -> Program:
        """Load the driver, without those features; the caller ends the program."""
        self.load_offloads(without | UNKNOWN)
        assert header_length(self.frontend.features) == HEADER.size
        rings = [RINGS + index * RING_BYTES for index in range(2)]
        assert rings[-1] + RING_BYTES <= BUFFERS
        self.frontend.driver_ok(
            RingAt(index, NUM, at, at + 0x4000, at + 0x8000)
            for index, at in enumerate(rings)
        )
        signals = [
            fds[index]
            for index in range(2)
            for fds in (self.frontend.kicks, self.frontend.calls)
        ]
        fds = [self.memory.files[0].fd, self.tap, *signals]
        card = Program([str(program), *map(str, fds)], log, fds=fds)
        card.wait_log("ready")
        return card


@dataclass(frozen=True, slots=True)
class Link:
    """A master with card.c, and its slave's namespace."""

    stream: Path
    master: str
    """The file of its namespace."""
    slave: Namespace

    def gigabits(self, seconds: float, *, from_master: bool) -> float:
        """Send UDP segments for some seconds; return the Gbit/s that arrive."""
        ends = [self.master, self.slave.path]
        address = SLAVE_ADDRESS if from_master else MASTER_ADDRESS
        words = (address, PAYLOAD, DATAGRAMS, f"{seconds:g}")
        done = subprocess.run(
            [self.stream, *(ends if from_master else ends[::-1]), *map(str, words)],
            check=True,
            capture_output=True,
            text=True,
        )
        return received_gigabits(done.stdout)


def received_gigabits(text: str) -> float:
    """Understand the line of udp_stream."""
    received, _sent, took = map(int, text.split())
    return 8 * received / took


@contextmanager
def linked(directory: Path, *, without: Feature) -> Iterator[Link]:
    """Start a daemon, an agent and a master; the link is up."""
    directory.mkdir()
    programs = [
        link([compile_object(HERE / name, COMMON, directory)], directory / name[:-2])
        for name in ("card.c", "udp_stream.c")
    ]
    with ExitStack() as stack:
        # Another link's TAP may have the same name and address.
        stack.enter_context(private_network())
        here = os.open("/proc/thread-self/ns/net", os.O_RDONLY | os.O_CLOEXEC)
        stack.callback(os.close, here)
        lab = stack.enter_context(AttachLab(directory))
        lab.start()
        master = FastMaster(lab.socket, Ram.of_nodes(MEMORY))
        stack.callback(master.close)
        set_up_master(MASTER_ADDRESS)
        card = master.start_card(programs[0], directory / "card.log", without=without)
        stack.callback(card.close)
        lab.wait_carrier("UP")
        yield Link(programs[1], f"/proc/{os.getpid()}/fd/{here}", lab.slave)

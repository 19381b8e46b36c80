# SPDX-License-Identifier: Apache-2.0
"""A pair of VMs that is led through the events of a life, with traffic on.

One VM goes through an event while the other one pings it.  Once both are up again,
answers must come soon; no process may have more descriptors than before, and the
daemon may not have complained.
"""

import re
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory

from tests.descriptors import open_descriptors
from tests.vm import crash_kernel, image, traffic, wheels
from tests.vm.channel import GuestError
from tests.vm.daemon import Daemon
from tests.vm.harness import Job, Vm
from tests.vm.kernels import SUPPORTED_KERNELS
from tests.vm.pair import MASTER_ADDRESS, SLAVE_ADDRESS, Master, Pair, Slave
from tests.vm.traffic import Pinging
from tests.waiting import wait_for

KERNEL = SUPPORTED_KERNELS["6.12"]
"""Of both VMs: the oldest one that resumes from RAM (see `power.suspend_to_ram`)."""
BACK = 10.0
"""Seconds of a VM's own time after which packets must cross, once both VMs are up."""
NETDEV = "vhostpci-card-net"
"""The master's card in QEMU, as `qemu-args` names it."""

# A daemon that looks at a machine without free processors finds that the agent is late.
_RIGHT = re.compile(r"the agent has said nothing for|the agent did not stop within")
_COMPLAINT = re.compile(r"^\S+ \S+ [WE] .*", re.M)


@dataclass(frozen=True, slots=True)
class Outage:
    """A ping from the VM that stays."""

    pings: Pinging
    vms: tuple[Vm, ...]

    def ends(self) -> None:
        """Wait for the next answer: both VMs are up."""
        before, since = self.pings.answers(), time.monotonic()
        limits = [vm.patience(BACK) for vm in self.vms]
        while self.pings.answers() == before:
            if all(limit.is_over() for limit in limits):
                late = time.monotonic() - since
                raise GuestError(f"no answer after {late:.1f} s\n{self.pings.output()}")
            time.sleep(0.05)


class Lives:
    """Both VMs, the daemon with its keeper, and the agent that serves now."""

    def __init__(self, link: Pair) -> None:
        self.link = link
        self.daemon, self.master, self.slave = link.daemon, link.master, link.slave
        self._stack = ExitStack()
        self._agent: Job | None = None

    @property
    def agent(self) -> Job:
        """The agent that serves now."""
        assert self._agent, "no agent serves"
        return self._agent

    def serve(self) -> None:
        """Start the next agent; the one before has gone with its VM."""
        self._stack.close()
        self._agent = self._stack.enter_context(self.slave.agent("vfio"))

    def close(self) -> None:
        """End the agent."""
        self._stack.close()

    @contextmanager
    def outage(self, gone: Vm, *, lasts: bool = False) -> Iterator[Outage]:
        """One VM goes through an event while the block runs, and the other pings it.

        Args:
            gone: the VM that the event is for.
            lasts: whether it goes on in the end, so that no packet may be lost.
        """
        stays = self.slave if gone is self.master else self.master
        address = MASTER_ADDRESS if gone is self.master else SLAVE_ADDRESS
        descriptors, said = self.descriptors(), len(self.daemon.output())
        self.link.wait_link()
        with traffic.pinging(stays, address, ends_without_link=not lasts) as pings:
            pings.wait_answers(3)
            yield Outage(pings, (self.master, self.slave))
        ping = self.link.ping_both_ways()
        assert ping.received == ping.sent, self.link.counters()
        if lasts:
            result = pings.result()
            assert result.received == result.sent, pings.output()
        assert self.complaints(said) == []
        wait_for(
            lambda: all(
                n <= descriptors[name] for name, n in self.descriptors().items()
            ),
            lambda: f"{descriptors} before, now {self.descriptors()}",
            10,
        )

    def descriptors(self) -> dict[str, int]:
        """Return how many descriptors each process has."""
        pids = {
            "daemon": self.daemon.serving,
            "keeper": self.daemon.pid,
            "master": self.master.pid,
            "slave": self.slave.pid,
        }
        return {name: len(open_descriptors(pid)) for name, pid in pids.items()}

    def complaints(self, since: int = 0) -> list[str]:
        """Return the daemon's warnings and errors after so many characters."""
        found = _COMPLAINT.findall(self.daemon.output()[since:])
        return [line for line in found if not _RIGHT.search(line)]

    def set_link(self, *, up: bool) -> None:
        """Plug the cable of the master's card in, or out."""
        self.master.qmp("set_link", name=NETDEV, up=up)

    def rebind_driver(self) -> None:
        """Take the driver from the master's card, and give it back."""
        driver = "/sys/bus/virtio/drivers/virtio_net"
        self.master.run(
            "device=$(basename $(readlink /sys/class/net/eth0/device)) && "
            f"echo $device > {driver}/unbind && echo $device > {driver}/bind"
        )


@contextmanager
def booted(logs: Path) -> Iterator[Lives]:
    """Both VMs with an agent, and packets crossing; the master has a crash kernel."""
    guest = image.build(wheels.guest_wheels(), KERNEL)
    with (
        Daemon("card", memory="512M", logs=logs) as daemon,
        TemporaryDirectory(prefix="vhostpci-") as scratch,
    ):
        # The later -append counts.
        args = [*daemon.qemu_args("master"), "-append", crash_kernel.APPEND]
        masters = crash_kernel.beside(guest, KERNEL, Path(scratch))
        master = Master("master", masters, logs=logs, args=args)
        args = daemon.qemu_args("slave")
        slave = Slave("slave", guest, logs=logs, args=args, iommu=True)
        with slave, master:
            slave.wait_ready()
            master.wait_ready()
            lives = Lives(Pair(daemon, master, slave))
            try:
                lives.serve()
                master.configure()
                yield lives
            finally:
                lives.close()

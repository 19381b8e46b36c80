# SPDX-License-Identifier: Apache-2.0
"""A slave VM with systemd, whose agent udev starts, and a master beside it.

    with booted(guest, logs, iommu=True) as pair:
        slave = served(pair)

The image of the slave is one of systemd_image.py's.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from tests.vm import image
from tests.vm.daemon import Daemon
from tests.vm.image import Image
from tests.vm.pair import TAP, Master, Pair, Slave

AGENT = "vhostpci-guest"
BOOT = 300.0
"""Seconds of the guest's: systemd starts some thirty programs, in an emulated VM."""


class SystemdSlave(Slave):
    """A slave VM whose agent is started by udev."""

    def show(self, unit: str, name: str) -> str:
        """Return a property of a unit's."""
        return self.run(f"systemctl show --value -p {name} {unit}").stdout.strip()

    def wait_served(self) -> None:
        """Wait until the agent, which no test starts, has its TAP."""
        self.wait_until(
            self._has_tap,
            lambda: self.run(f"systemctl status {AGENT}", check=False).stdout,
            BOOT,
        )

    def wait_successor(self, before: str) -> None:
        """Wait until another agent than `before` serves."""
        self.wait_until(
            lambda: (
                self.show(AGENT, "MainPID") not in ("0", before)
                and self.show(AGENT, "SubState") == "running"
            ),
            lambda: self.run(f"journalctl -u {AGENT} --no-pager").stdout,
            BOOT,
        )

    def index(self) -> str | None:
        """Return the number of the TAP, which a TAP that is made again has not."""
        return self.peek(f"/sys/class/net/{TAP}/ifindex")

    def received(self) -> int:
        """Return how many bytes the master's stream has brought so far."""
        return int(self.peek("/run/received") or 0)


@contextmanager
def booted(guest: Image, logs: Path, *, iommu: bool) -> Iterator[Pair]:
    """Have a daemon and both VMs run while the block does."""
    with Daemon("web", memory="512M", logs=logs) as daemon:
        args = {role: daemon.qemu_args(role) for role in ("master", "slave")}
        master = Master("master", image.build(), logs=logs, args=args["master"])
        slave = SystemdSlave(
            "slave", guest, logs=logs, args=args["slave"], memory="1G", iommu=iommu
        )
        with slave, master:
            master.wait_ready()
            slave.wait_ready(BOOT)
            yield Pair(daemon, master, slave)


def served(pair: Pair) -> SystemdSlave:
    """Wait until the agent serves and the link is up; return the slave."""
    assert isinstance(pair.slave, SystemdSlave)
    pair.slave.wait_served()
    pair.master.configure()
    pair.wait_link()
    return pair.slave

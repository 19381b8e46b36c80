# SPDX-License-Identifier: Apache-2.0
"""A first ping between two VMs by the README's commands, and after they rebooted.

  master: Debian           hypervisor: Debian      slave: Debian, no compiler
 10.0.0.1                  vhostpci-host, QEMU     10.0.0.2
  card ------- vhost-user ------+------ ivshmem ------ net0
systemd-networkd                                  vhostpci-guest.service

All three are new, and of one release: Debian 12, then Debian 13.
"""

import subprocess
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.install import disk, fresh, offline, readme
from tests.install.fresh import FreshMachine
from tests.install.readme_vms import BOOT, ReadmeVm
from tests.vm import traffic
from tests.vm.image import CHECKOUT
from tests.waiting import wait_for

pytestmark = [
    pytest.mark.install,
    pytest.mark.downloads,
    pytest.mark.timeout(1800),
]

CONTROL = Path("/run/vhostpci/net0.control")
UNIT = "vhostpci-guest"


@dataclass(frozen=True, slots=True)
class Machines:
    """The two VMs, up, and the daemon between them."""

    master: ReadmeVm
    slave: ReadmeVm

    def assert_ping(self) -> None:
        """See that pings cross, once the link is there."""
        self.master.wait_for("ping -n -q -c 1 -W 1 10.0.0.2", BOOT)
        ping = traffic.ping(self.master, "10.0.0.2")
        assert ping.received == ping.sent, self.told()

    def told(self) -> str:
        """Return what the agent says."""
        return self.slave.run(f"journalctl -u {UNIT} --no-pager").stdout


def carry(place: Path, target: Path) -> Path:
    """Write the folder of wheels to a disk that a VM can have: no network is needed."""
    (place / "builder").mkdir()
    folder = place / "carried"
    folder.mkdir()
    (folder / "offline").symlink_to(offline.build(place / "builder"))
    copied = place / "copied"
    subprocess.run(["cp", "-rL", str(folder), str(copied)], check=True)
    argv = ["mke2fs", "-q", "-t", "ext4", "-d", str(copied), str(target), "64M"]
    subprocess.run(argv, check=True)
    return target


@contextmanager
def hypervisor(release: str, place: Path) -> Iterator[FreshMachine]:
    """A Debian with QEMU, on which the README's daemon serves net0."""
    *install, serve = readme.commands("README.md", "**1. On the hypervisor**")
    with fresh.machine(release, place) as machine:
        machine.run("apt install --no-install-recommends qemu-system-x86")
        for line in install:
            machine.run(line)
        with machine.running(serve):
            socket = machine.path(CONTROL)
            wait_for(socket.is_socket, lambda: f"no {socket}")
            yield machine


@contextmanager
def booted(release: str, place: Path) -> Iterator[Machines]:
    """Both VMs, as the README starts them."""
    logs = CHECKOUT / f"logs/first-ping-{release}"
    for name in ("debian", "carry", "hypervisor", "disks"):
        (place / name).mkdir()
    debian = disk.build(release, place / "debian")
    disks = place / "disks"
    wheels = carry(place / "carry", disks / "wheels.img")
    master = readme.script("README.md", "**2. Start the two VMs**")
    slave = readme.script("README.md", '--role master)"\n```')
    with hypervisor(release, place / "hypervisor") as machine, ExitStack() as stack:
        for shared in (disks, debian.disk.parent):
            machine.share(shared)
        vms = [
            ReadmeVm("master", master, machine, disks, debian, logs),
            ReadmeVm(
                *("slave", slave, machine, disks, debian, logs),
                *("-drive", f"file={wheels},if=virtio,format=raw,readonly=on"),
            ),
        ]
        for vm in vms:
            stack.enter_context(vm)
        for vm in vms:
            vm.wait_ready(BOOT)
        yield Machines(*vms)


def install_agent(slave: ReadmeVm) -> str:
    """Install it in the slave; return the command that runs it."""
    slave.run("mount -o ro /dev/vdb /mnt")
    assert slave.run("command -v gcc cc", check=False).rc
    script = readme.script("guest/README.md", "Install it there, as root")
    slave.run(f"cd /mnt\n{script}", timeout=BOOT)
    *_, run = readme.commands("README.md", "**3. In the slave**")
    return run


@pytest.mark.parametrize("release", fresh.RELEASES.values())
def test_ping_by_the_readme_is_still_there_after_reboots(
    release: str, tmp_path: Path
) -> None:
    with booted(release, tmp_path) as machines:
        master, slave = machines.master, machines.slave
        agent = slave.spawn(f"exec {install_agent(slave)}")
        *card, ping = readme.commands("README.md", "**4. In the master**")
        agent.wait_said("carrier", timeout=BOOT)
        master.run("\n".join(["set -e", *card]))
        assert ping == "ping 10.0.0.2"
        machines.assert_ping()

        agent.stop()
        permanent = readme.script("README.md", "**In the slave**")
        slave.run(f"cd /mnt\n{permanent.replace('guest/systemd/', 'offline/')}")
        master.run(readme.script("README.md", "**In the master**"))
        machines.assert_ping()
        for rebooted in ((master,), (slave,), (master, slave)):
            for vm in rebooted:
                vm.begin_reboot()
            for vm in rebooted:
                vm.wait_rebooted(BOOT)
            machines.assert_ping()
        assert slave.run("systemctl --failed --plain --no-legend").stdout == ""

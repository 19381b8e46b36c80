# SPDX-License-Identifier: Apache-2.0
"""The short path, with each QEMU that the other tests do not run.

Master and slave boot the kernel of the same Debian.

  master "there"          vhostpci-host            slave
 virtio-net ------- vhost-user, ivshmem ------- its device from the start --+
10.77.0.1                                                    10.77.0.2      |
                                                          vhostpci-guest run
  master "plugged"        vhostpci-host                      10.77.1.2      |
 virtio-net ------- vhost-user, QMP ----------- two root ports -------------+
10.77.1.1
"""

import os
import shutil
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.vm import dmesg, image, memory, qemu, qemus, traffic, wheels
from tests.vm.daemon import Daemon, Fleet
from tests.vm.data_planes import RING, VHOST_NET
from tests.vm.image import Image
from tests.vm.pair import Master, Slave
from tests.vm.qemus import Qemu

pytestmark = pytest.mark.vm

WINDOWS = "grep -l 0x1110 /sys/bus/pci/devices/*/device | wc -l"
"""How many ivshmem devices the slave has."""
THERE, PLUGGED = "there", "plugged"
NETWORKS = {THERE: "10.77.0", PLUGGED: "10.77.1"}


def under_test() -> list[Qemu]:
    """The one that VHOSTPCI_QEMU names, else all that this machine does not have."""
    chosen = qemus.SUPPORTED.get(os.environ.get("VHOSTPCI_QEMU", ""))
    if chosen:
        return [chosen]
    # Not skipped in the test: in CI a skip would be a failure.  Without any QEMU the
    # marker "vm" fails each test, with the name of what is missing.
    own = qemu.version() if shutil.which(qemu.binary()) else ""
    return [one for one in qemus.SUPPORTED.values() if not one.is_version(own)]


@dataclass(frozen=True, slots=True)
class Lab:
    """The slave, the masters' daemons, and the one master that is up from the start."""

    qemu: Qemu
    guest: Image
    slave: Slave
    there: Master
    daemon: Daemon
    fleet: Fleet
    logs: Path

    def ping_both_ways(self, master: Master, device: str) -> traffic.Ping:
        """Wait for the agent and a first answer, then ping both ways."""
        network = NETWORKS[device]
        # First for what the slave does: its agent takes the slave's time to start, and
        # the master's has no part in it.
        self.slave.wait_until(
            lambda: self.slave.has_carrier(device), lambda: f"a carrier of {device}"
        )
        master.wait_for(f"ping -n -q -c 1 -W 1 {network}.2")
        return traffic.ping(master, f"{network}.2") + traffic.ping(
            self.slave, f"{network}.1"
        )

    def wait_windows(self, count: int) -> None:
        """Wait until the slave has so many ivshmem devices."""
        self.slave.wait_for(f"test $({WINDOWS}) = {count}")


@pytest.fixture(scope="module", params=under_test(), ids=lambda qemu: qemu.version)
def lab(request: pytest.FixtureRequest, logs: Path) -> Iterator[Lab]:
    """The slave and its first master; its kernel complains of nothing in the end."""
    version: Qemu = request.param
    logs /= f"qemu-{version.version}"
    guest, program = image.build((), version.kernel), version.program()
    with ExitStack() as stack:
        daemon = Daemon(THERE, memory="256M", logs=logs, program=program)
        stack.enter_context(daemon)
        slave = Slave(
            *("slave", image.build(wheels.guest_wheels(), version.kernel)),
            logs=logs,
            args=[*daemon.qemu_args("slave"), *qemu.ports(2, "512M")],
            memory="384M",
            iommu=True,
            program=program,
        )
        master = Master(
            *(THERE, guest),
            logs=logs,
            args=daemon.qemu_args("master"),
            program=program,
        )
        stack.enter_context(slave)
        stack.enter_context(master)
        qmp = slave.run_dir / "slave-qmp"
        fleet = Fleet([PLUGGED], logs=logs, slave_qmp=qmp, program=program)
        stack.enter_context(fleet)
        slave.wait_ready()
        master.wait_ready()
        yield Lab(version, guest, slave, master, daemon, fleet, logs)
        dmesg.check(slave)


def addresses() -> list[str]:
    """The agent's options: each TAP has its device's name."""
    both = [f"{name}={network}.2/24" for name, network in NETWORKS.items()]
    return [word for value in both for word in ("--address", value)]


@pytest.mark.parametrize(
    ("bind", "plane"),
    [("vfio", RING), ("uio", RING), ("vfio", VHOST_NET), ("sysfs", VHOST_NET)],
)
def test_every_ping_comes_back_both_ways(lab: Lab, bind: str, plane: str) -> None:
    options = ("--bind", bind, "--data-plane", plane)
    with lab.slave.waiting_agent(*options, *addresses()):
        lab.there.configure()
        ping = lab.ping_both_ways(lab.there, THERE)
        assert ping.received == ping.sent >= 20


def test_segments_flow_both_ways_and_used_entries_are_batched(lab: Lab) -> None:
    master, network = lab.there, NETWORKS[THERE]
    with lab.slave.waiting_agent("--bind", "vfio", *addresses()):
        master.configure()
        lab.ping_both_ways(master, THERE)
        for server, client, host in ((lab.slave, master, 2), (master, lab.slave, 1)):
            with traffic.iperf_server(server):
                assert traffic.tcp(client, f"{network}.{host}", seconds=2) > 0
    # QEMU has the property from 9.1 on, and Linux's driver takes it from 7.0 on.
    features = lab.daemon.status()["master"]["features"]
    assert ("F_IN_ORDER" in features) is (lab.qemu.version == "11")
    # We offer it, and Linux's driver knows it, but QEMU gives it to no card of
    # vhost-user.  If this fails, QEMU does, and docs/interoperability.md is to say so.
    assert "NET_F_HOST_USO" not in features
    dmesg.check(master)


def test_window_is_plugged_and_unplugged_while_packets_flow(lab: Lab) -> None:
    """The slave's kernel works the rings; test_hotplug.py has our own threads."""
    device, options = lab.fleet.device(PLUGGED), ("--data-plane", VHOST_NET)
    with (
        lab.slave.waiting_agent("--bind", "vfio", *options, *addresses()) as agent,
        Master(
            *(PLUGGED, lab.guest),
            logs=lab.logs,
            args=[*device.card(), *memory.memfd("256M")],
            program=lab.qemu.program(),
        ) as plugged,
    ):
        plugged.address = f"{NETWORKS[PLUGGED]}.1"
        plugged.wait_ready()
        for master in (lab.there, plugged):
            master.configure()
        ping = lab.ping_both_ways(plugged, PLUGGED)
        assert ping.received == ping.sent >= 20
        assert device.status()["plugging"]["problem"] == ""
        _unplug_under_traffic(lab, plugged)
        # The master connects again by itself, and the window comes back.
        lab.fleet.add(PLUGGED)
        ping = lab.ping_both_ways(plugged, PLUGGED)
        assert ping.received == ping.sent >= 20
        assert agent.poll() is None


def _unplug_under_traffic(lab: Lab, plugged: Master) -> None:
    """Unplug a window whose rings run; the other device loses no packet."""
    with (
        traffic.pinging(
            plugged, f"{NETWORKS[PLUGGED]}.2", 0.02, ends_without_link=True
        ) as ends,
        traffic.pinging(lab.there, f"{NETWORKS[THERE]}.2") as lasts,
    ):
        ends.wait_answers(20)
        lab.wait_windows(3)
        lab.fleet.remove(PLUGGED)
        lab.wait_windows(1)
        lasts.wait_answers(20)
    assert lasts.result().received == lasts.result().sent
    assert plugged.is_running()

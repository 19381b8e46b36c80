# SPDX-License-Identifier: Apache-2.0
"""Both VMs are domains of a libvirtd, with the XML that `vhostpci-host xml` prints.

  master             hypervisor               slave
10.77.0.1           vhostpci-host           10.77.0.2
  eth0 ---- vhost-user ----+---- ivshmem ------ vp0
virtio-net              |                 vhostpci-guest
   |                  virsh                    |
   +------------------ libvirtd ---------------+
"""

import json
import shlex
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.vm import image, wheels
from tests.vm.daemon import Daemon
from tests.vm.libvirtd import (
    Libvirtd,
    ManagedMaster,
    ManagedSlave,
    PluggingDaemon,
)
from tests.vm.pair import Pair
from vhostpci_host.cli import libvirt_xml
from vhostpci_host.cli.qemu_version import Version
from vhostpci_host.config.device import MIB, DeviceConfig, Mode
from vhostpci_host.hotplug import shmem_xml

pytestmark = [pytest.mark.vm, pytest.mark.libvirt]


@pytest.fixture
def libvirtd(here: Path, request: pytest.FixtureRequest) -> Iterator[Libvirtd]:
    """A libvirtd without any domain; the parameter is a suite that has another one."""
    with Libvirtd(here, getattr(request, "param", "")) as libvirtd:
        yield libvirtd


@dataclass(frozen=True, slots=True)
class Domains(Pair):
    """Both VMs, started by libvirt."""

    master: ManagedMaster
    slave: ManagedSlave


def domains(libvirtd: Libvirtd, daemon: Daemon, logs: Path, *options: str) -> Domains:
    """Return both VMs, not started; the options are for `vhostpci-host xml`."""
    guest = image.build(wheels.guest_wheels())
    of_master, of_slave = (daemon.xml(role, *options) for role in ("master", "slave"))
    return Domains(
        daemon,
        ManagedMaster("master", guest, logs=logs, libvirtd=libvirtd, xml=of_master),
        ManagedSlave("slave", guest, logs=logs, libvirtd=libvirtd, xml=of_slave),
    )


def test_packets_cross_between_domains_that_have_the_device_from_their_start(
    libvirtd: Libvirtd, here: Path
) -> None:
    with Daemon("web", memory="512M", logs=here) as daemon:
        pair = domains(libvirtd, daemon, here)
        with pair.slave as slave, pair.master as master:
            slave.wait_ready()
            master.wait_ready()
            with slave.agent("vfio"):
                _assert_packets_cross(pair)


def test_windows_of_a_domains_own_memory_are_plugged_into_a_running_domain(
    libvirtd: Libvirtd, here: Path
) -> None:
    with PluggingDaemon("web", libvirtd, "switch", here) as daemon:
        memory = ("--mode", "attach", "--memory", "512M", "--slave-libvirt", "switch")
        pair = domains(libvirtd, daemon, here, *memory)
        with pair.slave as slave, pair.master as master:
            slave.wait_ready()
            master.wait_ready()
            with slave.agent("vfio"):
                _assert_packets_cross(pair)
                plugged = daemon.plugged()
                assert len(plugged) == 2
                said = len(daemon.output())
                daemon.replace()
                _assert_packets_cross(pair)
                assert daemon.plugged() == plugged
                news = daemon.output()[said:]
                assert "plugged" not in news, news
                master.power_off()
                daemon.wait_plugged([])
                master.power_on()
                _assert_packets_cross(pair)


@pytest.mark.parametrize(
    "libvirtd", ["", "trixie"], ids=["this-debian", "trixie"], indirect=True
)
def test_one_cell_of_a_confined_domain_is_shared_and_the_others_have_no_file(
    libvirtd: Libvirtd,
) -> None:
    config = DeviceConfig(name="web", mode=Mode.ATTACH, confined=64 * MIB)
    domain = libvirt_xml.master(config, Version(7, 2), 1024 * MIB, kind="qemu")
    if program := libvirtd.qemu():
        libvirt_xml.set_emulator(domain, Path(program))
    text = shmem_xml.text(domain)
    libvirtd.virsh("define", "--validate", "/dev/stdin", text=text)
    line = shlex.split(
        libvirtd.virsh("domxml-to-native", "qemu-argv", "--domain", "web-master")
    )
    memory = [word for word in line if '"memory-backend-' in word]
    kinds = [json.loads(word)["qom-type"] for word in memory]
    private = "memory-backend-ram"
    assert kinds == [private, "memory-backend-file", private, private]
    assert json.loads(memory[1])["share"] is True
    assert [word for word in line if "xhci" in word or "balloon" in word] == []
    assert "max-ram-below-4g=512M,sata=off" in line
    assert ["virtio-net-pci" in word for word in line].count(True) == 1


def _assert_packets_cross(pair: Pair) -> None:
    pair.master.configure()
    pair.wait_link()
    ping = pair.ping_both_ways()
    assert ping.received == ping.sent

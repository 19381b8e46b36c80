# SPDX-License-Identifier: Apache-2.0
"""vhostpci-dkms: DKMS builds the module for a kernel, which a slave VM boots.

    a fresh Debian with kernel and headers --- module, udev rules ---> the slave
  master                 hypervisor               slave, without an IOMMU
10.77.0.1               vhostpci-host           10.77.0.2
  eth0 ------ vhost-user ----+---- ivshmem ------ vp0
virtio-net                              udev -> uio_vhostpci, vhostpci-guest.service
"""

import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.install import fresh, packages, systemd_image
from tests.install.fresh import FreshMachine
from tests.install.systemd_slave import booted, served
from tests.vm import debs, image, rootfs
from tests.vm.cache import cache_dir
from tests.vm.debian import CODENAME
from tests.vm.image import CHECKOUT, Image
from tests.vm.kernels import THIS_DEBIAN
from vhostpci_shared import __version__

pytestmark = [pytest.mark.debs, pytest.mark.install]

RELEASE = THIS_DEBIAN.release()
RULES = Path("usr/lib/udev/rules.d/60-vhostpci.rules")
CONFIG = 'bind = "kmod"\ntap = "vp0"\naddress = "10.77.0.2/24"\n'


@pytest.fixture(scope="module")
def machine(tmp_path_factory: pytest.TempPathFactory) -> Iterator[FreshMachine]:
    """A machine in which apt has installed a kernel, its headers and our package."""
    with fresh.machine(CODENAME, tmp_path_factory.mktemp("dkms")) as new:
        place = new.path(Path("/tmp/debs"))
        place.mkdir()
        for file in kernel_packages():
            shutil.copy(file, place)
        # An administrator who installs what apt recommends has openssl, too.
        new.run("apt-get install --no-install-recommends openssl /tmp/debs/*.deb")
        ours = packages.package("vhostpci-dkms")
        shutil.copy(ours, place)
        new.run(f"apt-get install --no-install-recommends /tmp/debs/{ours.name}")
        yield new


def kernel_packages() -> list[Path]:
    """Return the files of this Debian's newest kernel and its headers."""
    names = [*THIS_DEBIAN.image_packages(), *THIS_DEBIAN.header_packages()]
    found = debs.locate(names, THIS_DEBIAN.archive())
    debs.download(names, found, cache_dir() / "debs", THIS_DEBIAN.archive())
    return [cache_dir() / "debs" / deb.filename for deb in found]


def modules(machine: FreshMachine) -> list[Path]:
    """Return our modules that are in the machine."""
    return [*machine.path(Path("/usr/lib/modules")).rglob("uio_vhostpci.ko*")]


@pytest.fixture(scope="module")
def guest(machine: FreshMachine, tmp_path_factory: pytest.TempPathFactory) -> Image:
    """A slave VM's image with the module that DKMS has built, and its udev rules."""
    place = tmp_path_factory.mktemp("image")
    (place / "empty").mkdir()
    made = systemd_image.build("bookworm", place / "empty")
    overlay = place / "overlay"
    (built,) = modules(machine)
    rootfs.add_module(overlay, systemd_image.modules_of(made), built)
    (overlay / RULES.parent).mkdir(parents=True)
    shutil.copy(machine.path(Path("/") / RULES), overlay / RULES)
    (overlay / "etc/vhostpci").mkdir(parents=True)
    (overlay / "etc/vhostpci/guest.toml").write_text(CONFIG)
    image.append(made.initrd, overlay, place / "initrd")
    return Image(kernel=made.kernel, initrd=place / "initrd", release=made.release)


def test_dkms_has_built_it_for_the_kernel(machine: FreshMachine) -> None:
    said = machine.run("dkms status")
    assert said == f"uio_vhostpci/{__version__}, {RELEASE}, x86_64: installed\n"


def test_agent_serves_by_it_and_packets_cross(guest: Image) -> None:
    with booted(guest, CHECKOUT / "logs/dkms", iommu=False) as pair:
        slave = served(pair)
        (device,) = slave.agents()
        assert device["binding"] == "kmod"
        bound = slave.run("ls -d /sys/bus/pci/drivers/uio_vhostpci/0000:*").stdout
        assert slave.run("ls /dev/vhostpci").stdout == bound.rpartition("/")[2]
        ping = pair.ping_both_ways()
        assert ping.received == ping.sent


def test_removal_of_the_package_leaves_no_module(machine: FreshMachine) -> None:
    assert modules(machine)
    machine.run("apt-get remove vhostpci-dkms")
    assert machine.run("dkms status") == ""
    assert not modules(machine)
    assert not machine.path(Path("/") / RULES).exists()
    assert "uio_vhostpci" not in machine.run("cat /lib/modules/*/modules.alias")

# SPDX-License-Identifier: Apache-2.0
"""A confined master is a domain of a libvirtd, with the XML that is printed for it.

  master                      vhostpci-host              namespace
private memory: secrets
shared region ------------------ window ---------------- vhostpci-guest --socket
   |
   +-- libvirtd, in attach mode: it makes the file

What is searched, and how a search is seen to find what is there, is in
test_confined.py.
"""

import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.findings import good
from tests.vm import confined, dmesg, image, process
from tests.vm.confined import Link
from tests.vm.daemon import Daemon
from tests.vm.libvirtd import Libvirtd, ManagedConfinedMaster
from tests.vm.test_confined import (
    assert_nothing_is_found,
    assert_region_has_nothing_else,
    exchange,
    freed_memory_in_the_window,
    keep_secrets,
)

pytestmark = [pytest.mark.vm, pytest.mark.libvirt, pytest.mark.long]

MEMORY = ("--mode", "attach", "--memory", f"{confined.MEMORY >> 20}M")


@dataclass(frozen=True, slots=True)
class Domain(Link):
    """A confined master of libvirt's, and its slave."""

    libvirtd: Libvirtd

    @property
    def window(self) -> Path:
        """The file that libvirt has made of the shared cell."""
        (file,) = (
            path for path in self.libvirtd.memory_dir.rglob("*") if path.is_file()
        )
        return file


@pytest.fixture(scope="module", params=["", "trixie"], ids=["this-debian", "trixie"])
def link(logs: Path, request: pytest.FixtureRequest) -> Iterator[Domain]:
    """A confined domain that keeps secrets, and has sent and received."""
    here = logs / f"libvirt-{request.param}"
    libvirtd = Libvirtd(here, request.param)
    device = Daemon("card", logs=here, confined="64M", program=libvirtd.qemu())
    with libvirtd, device as daemon:
        master = ManagedConfinedMaster(
            *("master", image.build((), confined.KERNEL)),
            logs=here,
            libvirtd=libvirtd,
            xml=daemon.xml("master", *MEMORY),
            words=confined.secret_words(daemon.kernel_words(*MEMORY)),
        )
        with master, process.serving(daemon, here / "agent.log") as slave:
            master.wait_ready()
            link = Domain(daemon, master, slave, libvirtd)
            confined.wait_packets(link)
            keep_secrets(master)
            exchange(link)
            yield link
            dmesg.check(master)


def test_no_secret_of_the_master_is_in_the_window(link: Domain) -> None:
    assert_nothing_is_found(link)


def test_slave_has_no_other_memory_file_of_the_master(link: Domain) -> None:
    maps = Path(f"/proc/{link.slave.pid}/maps").read_text()
    assert set(re.findall(r"\S*/dev/shm/\S*", maps)) == {str(link.window)}


def test_shared_region_is_the_bounce_pool_and_the_rings_and_nothing_else(
    link: Domain,
) -> None:
    assert_region_has_nothing_else(link)


def test_check_in_the_master_finds_nothing_wrong(link: Domain) -> None:
    assert link.check(*MEMORY) == {}


# The other QEMU is run by a dynamic linker, so doctor does not see that it is one.
@pytest.mark.parametrize("link", [""], ids=["this-debian"], indirect=True)
def test_doctor_finds_nothing_wrong_on_the_hypervisor(link: Domain) -> None:
    names = ("memory", "card", "devices", "words")
    assert good(link.daemon.doctor(), *(f"confined-{name}" for name in names))


def test_freed_memory_does_not_come_with_receive_buffers(link: Domain) -> None:
    assert freed_memory_in_the_window(link) == 0

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
from tests.vm.confined import Q35, VIRTS, Link, Platform
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


@dataclass(frozen=True, slots=True)
class SetUp:
    """A libvirtd, and the machine of its domain."""

    name: str
    suite: str = ""
    """The libvirtd's, if it is not this machine's."""
    on: Platform = Q35
    kind: tuple[str, ...] = ()
    """The type of the domain, if it is not the usual one."""
    words: str = ""
    """More words of its kernel."""

    @property
    def options(self) -> tuple[str, ...]:
        """What describes the master to our commands."""
        memory = f"{self.on.memory >> 20}M"
        return ("--mode", "attach", "--memory", memory, *self.on.options)


THIS_DEBIAN = SetUp("this-debian")
VIRT = SetUp(
    "virt",
    on=VIRTS[0],
    kind=("--type", "qemu"),
    # TCG takes long for the usual cipher, at each call.
    words=" arm64.nopauth",
)
SET_UPS = [
    THIS_DEBIAN,
    SetUp("trixie", "trixie"),
    pytest.param(VIRT, marks=pytest.mark.arm64),
]


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


@pytest.fixture(scope="module", params=SET_UPS, ids=lambda one: one.name)
def how(request: pytest.FixtureRequest) -> SetUp:
    """Whose libvirt it is, and which machine."""
    assert isinstance(request.param, SetUp)
    return request.param


@pytest.fixture(scope="module")
def link(logs: Path, how: SetUp) -> Iterator[Domain]:
    """A confined domain that keeps secrets, and has sent and received."""
    here = logs / f"libvirt-{how.name}"
    libvirtd = Libvirtd(here, how.suite)
    program = libvirtd.qemu() or how.on.program
    device = Daemon("card", logs=here, confined="64M", program=program)
    with libvirtd, device as daemon:
        words = confined.secret_words(daemon.kernel_words(*how.options))
        master = ManagedConfinedMaster(
            *("master", image.build((), how.on.kernel)),
            logs=here,
            libvirtd=libvirtd,
            xml=daemon.xml("master", *how.options, *how.kind),
            words=words + how.words,
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


def test_check_in_the_master_finds_nothing_wrong(link: Domain, how: SetUp) -> None:
    assert link.check(*how.options) == {}


# The other QEMU is run by a dynamic linker, so doctor does not see that it is one.
@pytest.mark.parametrize("how", [THIS_DEBIAN], ids=["this-debian"], indirect=True)
def test_doctor_finds_nothing_wrong_on_the_hypervisor(link: Domain) -> None:
    names = ("memory", "card", "devices", "words")
    assert good(link.daemon.doctor(), *(f"confined-{name}" for name in names))


def test_freed_memory_does_not_come_with_receive_buffers(link: Domain) -> None:
    assert freed_memory_in_the_window(link) == 0

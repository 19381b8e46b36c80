# SPDX-License-Identifier: Apache-2.0
"""The orders to the helper of the PCI part: what an agent needs, and no more."""

import errno
import fcntl
import os
import re
import socket
import threading
from collections.abc import Iterator
from contextlib import AbstractContextManager
from pathlib import Path

import pytest

from tests.fakes.sysfs import FakeSystem
from vhostpci_guest.errors import Unusable
from vhostpci_guest.pci import bindings
from vhostpci_guest.pci.hold import Holder
from vhostpci_guest.pci.orders import MAPPED_BY, PciOrders
from vhostpci_guest.pci.remote import RemoteSystem
from vhostpci_guest.pci.sysfs_device import PciDevice
from vhostpci_guest.privileges.channel import Channel, serve

HERE = "0000:00:05.0"
CARD = "0000:00:06.0"


class Remote(RemoteSystem):
    """The agent's view of a machine whose files are the test's."""

    def __init__(self, channel: Channel, root: Path) -> None:
        super().__init__(channel, Holder(channel))
        self.sys, self.dev, self.proc = root / "sys", root / "dev", root / "proc"


@pytest.fixture
def remote(system: FakeSystem, tmp_path: Path) -> Iterator[Remote]:
    """An agent without privileges, on a machine with a function and a network card."""
    system.plug(HERE, group="7")
    system.plug(CARD, device="0x1041", group="8")
    for group, member in (("7", HERE), ("8", CARD)):
        members = system.sys / "kernel/iommu_groups" / group / "devices"
        (members / member).mkdir(parents=True)
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    handlers = PciOrders(system).handlers()
    helper = threading.Thread(target=serve, args=(theirs, handlers))
    helper.start()
    channel = Channel(ours, "binds devices")
    yield Remote(channel, tmp_path)
    channel.close()
    helper.join()
    theirs.close()


def here(remote: Remote) -> PciDevice:
    return PciDevice(HERE, remote)


def refused(why: str) -> AbstractContextManager[object]:
    return pytest.raises(PermissionError, match=why)


@pytest.mark.parametrize("way", ["sysfs", "uio"])
def test_device_is_bound_and_given_back_by_a_helper(
    remote: Remote, system: FakeSystem, way: str
) -> None:
    bound = bindings.bind(here(remote), way)
    assert bound.vector_count == 3
    bound.close()
    device = system.sys / "bus/pci/devices" / HERE
    assert here(remote).driver is None
    assert (device / "driver_override").read_text() == "(null)\n"
    assert (device / "enable").read_text() == "0\n"


def test_driver_of_before_is_bound_again(remote: Remote, system: FakeSystem) -> None:
    system.load_now("vfio-pci")
    system.write(system.sys / "bus/pci/devices" / HERE / "driver_override", "vfio-pci")
    system.write(system.sys / "bus/pci/drivers_probe", HERE)
    bindings.bind(here(remote), "sysfs").close()
    assert here(remote).driver == "vfio-pci"


def test_override_of_the_users_is_put_back(remote: Remote, system: FakeSystem) -> None:
    override = system.sys / "bus/pci/devices" / HERE / "driver_override"
    override.write_text("my-driver\n")
    bindings.bind(here(remote), "sysfs").close()
    assert override.read_text() == "my-driver\n"


def test_process_that_has_the_node_is_named(remote: Remote, system: FakeSystem) -> None:
    system.load_now("uio_pci_generic")
    system.plug("0000:00:07.0", driver="uio_pci_generic")
    system.opened("uio0", pid=4711, name="testpmd")
    with pytest.raises(Unusable, match=re.escape("testpmd (4711)")):
        bindings.bind(PciDevice("0000:00:07.0", remote))


def test_missing_module_is_explained_as_it_is_to_root(remote: Remote) -> None:
    with pytest.raises(Unusable, match="no kernel module uio_vhostpci"):
        bindings.bind(here(remote), "kmod")


def test_other_functions_are_out_of_reach(remote: Remote, system: FakeSystem) -> None:
    card = remote.sys / "bus/pci/devices" / CARD
    claim = os.open(card / "config", os.O_RDONLY)
    with refused("no ivshmem function"):
        remote.open_attribute(card / "resource0", write=True)
    with refused("no ivshmem function"):
        remote.write(card / "driver_override", "vfio-pci", claim)
    with refused("no ivshmem function"):
        remote.write(remote.sys / "bus/pci/drivers_probe", CARD, claim)
    with pytest.raises(Unusable, match=re.escape(f"group 8 has {CARD} in it")):
        remote.open(remote.dev / "vfio/8")
    os.close(claim)
    assert system.writes == []


def test_second_node_of_our_module_is_opened(
    remote: Remote, system: FakeSystem
) -> None:
    (system.dev / "uio_vhostpci").touch()
    os.close(remote.open(remote.dev / "uio_vhostpci"))


def test_node_of_another_driver_is_out_of_reach(
    remote: Remote, system: FakeSystem
) -> None:
    system.plug("0000:00:08.0", device="0x1041", driver="uio_pci_generic")
    with refused("uio0 is not of an ivshmem function"):
        remote.open(remote.dev / "uio0")


@pytest.mark.parametrize(
    "path",
    [
        "/etc/shadow",
        "dev/sda",
        "dev/uio0/../sda",
        "dev/vfio/../sda",
        "dev/uio",
        "dev/uio_vhostpci1",
        "dev/vfio/devices/vfio0",
        "dev/vfio/9",
    ],
)
def test_no_other_file_is_opened(remote: Remote, tmp_path: Path, path: str) -> None:
    with pytest.raises(PermissionError):
        remote.open(tmp_path / path)


@pytest.mark.parametrize(
    "name",
    [
        "reset",
        "remove",
        "rom",
        "resource0_wc",
        "driver/bind",
        "../../../../etc/passwd",
        "driver/../config",
    ],
)
def test_no_other_attribute_is_opened_or_written(
    remote: Remote, system: FakeSystem, name: str
) -> None:
    path = remote.sys / "bus/pci/devices" / HERE / name
    with here(remote).claimed():
        claim = claim_on(remote)
        with pytest.raises(PermissionError):
            remote.open_attribute(path)
        with pytest.raises(PermissionError):
            remote.write(path, "1", claim)
        os.close(claim)
    assert system.writes == []


def claim_on(remote: Remote, address: str = HERE) -> int:
    return remote.open_attribute(remote.sys / "bus/pci/devices" / address / "config")


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("driver_override", "virtio-pci"),
        ("driver_override", "vfio-pci\nx"),
        ("enable", "2"),
        ("enable", ""),
        ("driver/unbind", CARD),
    ],
)
def test_values_are_those_of_an_agent(
    remote: Remote, system: FakeSystem, name: str, text: str
) -> None:
    claim = claim_on(remote)
    with pytest.raises(PermissionError):
        remote.write(remote.sys / "bus/pci/devices" / HERE / name, text, claim)
    os.close(claim)
    assert system.writes == []


def test_driver_of_the_kernels_is_not_unbound(
    remote: Remote, system: FakeSystem
) -> None:
    path = system.plug("0000:00:09.0", driver="ivshmem-net")
    claim = claim_on(remote, "0000:00:09.0")
    with refused("ivshmem-net is no driver that the agent unbinds"):
        remote.write(path / "driver/unbind", "0000:00:09.0", claim)
    os.close(claim)


def test_device_must_be_claimed(remote: Remote, system: FakeSystem) -> None:
    system.plug("0000:00:09.0")
    enable = remote.sys / "bus/pci/devices" / HERE / "enable"
    other = claim_on(remote, "0000:00:09.0")
    with refused("came with 0 descriptors"):
        remote.write(enable, "1")
    with refused("the claim is not on"):
        remote.write(enable, "1", other)
    os.close(other)
    assert system.writes == []


def test_claim_of_another_agent_holds(remote: Remote, system: FakeSystem) -> None:
    theirs, ours = claim_on(remote), claim_on(remote)
    fcntl.flock(theirs, fcntl.LOCK_EX)
    enable = remote.sys / "bus/pci/devices" / HERE / "enable"
    with refused("another agent has claimed"):
        remote.write(enable, "1", ours)
    os.close(theirs)
    os.close(ours)
    assert system.writes == []


def test_claim_on_a_device_that_was_unplugged_is_not_on_the_next(
    remote: Remote, system: FakeSystem
) -> None:
    claim = claim_on(remote)
    system.unplug(HERE)
    path = system.plug(HERE)
    with refused("the claim is not on"):
        remote.write(path / "enable", "1", claim)
    os.close(claim)


def test_device_that_is_gone_is_an_error_as_for_root(
    remote: Remote, system: FakeSystem
) -> None:
    path = system.sys / "bus/pci/devices" / HERE
    system.unplug(HERE)
    with pytest.raises(FileNotFoundError) as gone:
        remote.open_attribute(path / "config")
    assert gone.value.errno == errno.ENOENT


def test_module_of_vhost_net_is_loaded(remote: Remote) -> None:
    # Whether or not it is there: the helper does not refuse to look.
    said = remote.modprobe("vhost_net", dry=True)
    assert said is None or "vhost_net" in said or "modprobe" in said


@pytest.mark.parametrize("module", ["nbd", "vfio-pci; reboot", "--show-depends", ""])
def test_no_other_module_is_loaded(remote: Remote, module: str) -> None:
    with pytest.raises(PermissionError):
        remote.modprobe(module)
    with pytest.raises(PermissionError):
        remote.signer(module)


def test_helper_tells_who_has_a_file_mapped(remote: Remote, system: FakeSystem) -> None:
    with (system.sys / "bus/pci/devices" / HERE / "resource2").open("r+b") as file:
        status = os.fstat(file.fileno())
        where = f"{os.major(status.st_dev):02x}:{os.minor(status.st_dev):02x}"
        process = system.proc / "77"
        process.mkdir()
        (process / "comm").write_text("testpmd\n")
        (process / "maps").write_text(f"0-1 rw-s 0 {where} {status.st_ino} /a file\n")
        assert remote.mapped_by(file.fileno(), [77, 78]) == ["testpmd (77)"]
        assert remote.mapped_by(file.fileno(), None) == ["testpmd (77)"]
        assert remote.mapped_by(file.fileno(), [78]) == []


@pytest.mark.parametrize("processes", [["self"], ["../1"], ["1"] * 65])
def test_helper_looks_at_processes_only(remote: Remote, processes: list[str]) -> None:
    with (remote.proc).joinpath("file").open("w+b") as file, refused("no processes"):
        remote._channel.ask(MAPPED_BY, processes, fd=file.fileno())


def test_users_of_other_files_are_not_told(remote: Remote) -> None:
    with pytest.raises(PermissionError):
        remote.users([Path("/etc/shadow")])

# SPDX-License-Identifier: Apache-2.0
"""libvirt's XML: what is in it, and that nothing in a name or a path breaks it."""

from dataclasses import replace
from pathlib import Path
from xml.etree import ElementTree as ET

import pytest

from vhostpci_host.cli import libvirt_xml, qemu_args
from vhostpci_host.cli.qemu_version import Version
from vhostpci_host.config.confined_layout import Machine
from vhostpci_host.config.device import MIB, DeviceConfig, Mode
from vhostpci_host.config.features import PROFILES
from vhostpci_host.errors import HostError
from vhostpci_host.hotplug import shmem_xml
from vhostpci_host.interfaces import Plug

V10_0 = Version(10, 0)

ARENA = DeviceConfig(name="web", memory=2**30)
ATTACH = DeviceConfig(name="web", mode=Mode.ATTACH)
PLUGGED = DeviceConfig(name="web", memory=2**30, slave_libvirt="switch")
MANY = DeviceConfig(name="web", memory=2**30, queue_pairs=4)

QEMU = {"qemu": libvirt_xml.QEMU}


def read(element: ET.Element) -> ET.Element:
    """Parse the printed XML, as libvirt does."""
    return ET.fromstring(shmem_xml.text(element))


def attributes(element: ET.Element, path: str) -> dict[str, str]:
    found = element.find(path, QEMU)
    assert found is not None, f"no {path}"
    return found.attrib


def words(element: ET.Element) -> list[str]:
    """Return the arguments that libvirt passes to QEMU unchanged."""
    return [arg.attrib["value"] for arg in element.iterfind(".//qemu:arg", QEMU)]


def overridden(element: ET.Element) -> dict[str, dict[str, str]]:
    """Return the overridden properties, by alias and name."""
    return {
        device.attrib["alias"]: {
            one.attrib["name"]: one.attrib["value"]
            for one in device.iterfind(".//qemu:property", QEMU)
        }
        for device in element.iterfind(".//qemu:device", QEMU)
    }


def test_master_has_the_arena_as_its_memory() -> None:
    master = read(libvirt_xml.master(ARENA, V10_0))
    assert master.findtext("memory") == "1024"
    assert words(master) == [
        *("-machine", "memory-backend=vhostpci-web-memory"),
        "-object",
        "memory-backend-file,id=vhostpci-web-memory,size=1024M,"
        "mem-path=/dev/shm/vhostpci/web,share=on",
    ]


def test_master_in_attach_mode_has_memory_of_libvirts() -> None:
    master = read(libvirt_xml.master(ATTACH, V10_0, 2**31))
    assert master.findtext("memory") == "2048"
    assert words(master) == []


@pytest.mark.parametrize("config", [ARENA, ATTACH], ids=["arena", "attach"])
def test_masters_memory_is_shared_for_libvirt(config: DeviceConfig) -> None:
    """libvirt 11 takes no vhost-user card otherwise."""
    master = read(libvirt_xml.master(config, V10_0, 2**31))
    assert attributes(master, "memoryBacking/source") == {"type": "memfd"}
    assert attributes(master, "memoryBacking/access") == {"mode": "shared"}


def test_master_reconnects_and_keeps_its_offloads() -> None:
    master = read(libvirt_xml.master(ARENA, V10_0))
    source = "devices/interface/source"
    assert attributes(master, source)["path"] == "/run/vhostpci/web.vhost-user"
    assert attributes(master, f"{source}/reconnect")["enabled"] == "yes"
    alias = attributes(master, "devices/interface/alias")["name"]
    properties = {"ctrl_guest_offloads": "false", "in_order": "true"}
    assert overridden(master) == {alias: properties}


def test_master_of_a_daemon_that_connects_listens() -> None:
    device = DeviceConfig(name="web", memory=2**30, connect=Path("/run/web"))
    source = read(libvirt_xml.master(device, V10_0)).find("devices/interface/source")
    assert source is not None
    expected = {"type": "unix", "path": "/run/web", "mode": "server"}
    assert (source.attrib, len(source)) == (expected, 0)


def test_master_of_an_old_qemu_has_no_property_that_it_does_not_know() -> None:
    properties = overridden(libvirt_xml.master(ARENA, Version(7, 2)))
    assert list(properties["ua-vhostpci-web"]) == ["ctrl_guest_offloads"]


def test_master_is_not_in_order_where_the_device_does_not_offer_that() -> None:
    device = replace(ARENA, features=PROFILES["vpp"])
    properties = overridden(libvirt_xml.master(device, V10_0))
    assert list(properties["ua-vhostpci-web"]) == ["ctrl_guest_offloads"]


def test_master_has_packed_rings_only_if_that_is_wanted() -> None:
    properties = overridden(libvirt_xml.master(ARENA, V10_0, packed=True))
    assert properties["ua-vhostpci-web"]["packed"] == "true"


def test_master_has_the_same_address_under_libvirt() -> None:
    mac = attributes(read(libvirt_xml.master(ARENA, V10_0)), "devices/interface/mac")
    assert mac["address"] == qemu_args.mac("web")


def test_masters_card_has_its_queues_and_no_driver_element_for_one() -> None:
    driver = "devices/interface/driver"
    assert attributes(read(libvirt_xml.master(MANY, V10_0)), driver)["queues"] == "4"
    assert read(libvirt_xml.master(ARENA, V10_0)).find(driver) is None


def test_master_without_msix_for_qemu_7_2_under_tcg() -> None:
    master = read(libvirt_xml.master(ARENA, V10_0, kind="qemu", vectors=0))
    assert master.attrib["type"] == "qemu"
    assert overridden(master)["ua-vhostpci-web"]["vectors"] == "0"


def test_slave_in_arena_mode_has_the_device_from_its_start() -> None:
    slave = read(libvirt_xml.slave(MANY))
    shmem = "devices/shmem"
    assert attributes(slave, f"{shmem}/model") == {"type": "ivshmem-doorbell"}
    assert attributes(slave, f"{shmem}/server")["path"] == "/run/vhostpci/web.ivshmem"
    assert attributes(slave, f"{shmem}/msi")["vectors"] == "9"
    assert attributes(slave, f"{shmem}/address")["bus"] == "0x00"
    assert slave.find("devices/controller") is None


@pytest.mark.parametrize("device", [ARENA, PLUGGED], ids=["there", "plugged"])
def test_slaves_windows_are_kept_from_what_is_reserved_for_amd(
    device: DeviceConfig,
) -> None:
    slave = read(libvirt_xml.slave(device))
    assert words(slave) == ["-global", "x86_64-cpu.phys-bits=39"]


def test_domain_has_the_qemu_that_the_user_names() -> None:
    domain = libvirt_xml.master(ARENA, V10_0)
    assert read(domain).find("devices/emulator") is None
    libvirt_xml.set_emulator(domain, Path("/opt/a & b/qemu"))
    assert read(domain).findtext("devices/emulator") == "/opt/a & b/qemu"


def test_emulated_slave_is_told_of_the_clock() -> None:
    assert "no_timer_check" in libvirt_xml.hint(ARENA, "slave", tcg=True)
    assert "no_timer_check" not in libvirt_xml.hint(ARENA, "slave", tcg=False)
    assert "no_timer_check" not in libvirt_xml.hint(ARENA, "master", tcg=True)


def ports(slave: ET.Element) -> dict[str, int]:
    """Return the root ports for windows, with the address space that each reserves."""
    reserves = {
        alias: int(properties["pref64-reserve"])
        for alias, properties in overridden(slave).items()
    }
    found = slave.iterfind("devices/controller/alias")
    assert [one.attrib["name"] for one in found] == list(reserves)
    return reserves


def test_slave_in_attach_mode_has_ports_for_windows_and_for_the_metadata() -> None:
    slave = read(libvirt_xml.slave(ATTACH, 2**32, windows=2))
    assert slave.find("devices/shmem") is None
    assert list(ports(slave).values()) == [2**33] * 3


def test_slave_that_an_arena_is_plugged_into_has_a_port_for_it() -> None:
    slave = read(libvirt_xml.slave(PLUGGED))
    assert slave.find("devices/shmem") is None
    assert list(ports(slave).values()) == [2**32]


def test_memory_of_a_master_in_attach_mode_is_asked_for() -> None:
    assert read(libvirt_xml.master(ATTACH, V10_0, 2**32)).findtext("memory") == "4096"
    with pytest.raises(HostError, match="--memory 4G"):
        libvirt_xml.master(ATTACH, V10_0)
    with pytest.raises(HostError, match="--memory 4G"):
        libvirt_xml.slave(ATTACH)


def test_ports_for_windows_come_last() -> None:
    controllers = read(libvirt_xml.slave(PLUGGED)).findall("devices/controller")
    assert controllers[0].attrib["model"] == "pcie-root"
    found = [port.find("alias") is not None for port in controllers[1:]]
    assert found == [False] * libvirt_xml.OTHER_PORTS + [True]


@pytest.mark.parametrize("config", [ARENA, ATTACH], ids=["arena", "attach"])
def test_slave_has_an_iommu_that_remaps_interrupts(config: DeviceConfig) -> None:
    slave = read(libvirt_xml.slave(config, 2**30))
    assert attributes(slave, "devices/iommu/driver") == {"intremap": "on"}
    assert attributes(slave, "features/ioapic") == {"driver": "qemu"}


def test_window_is_at_a_port_of_its_own() -> None:
    plug = Plug(window=300, socket=Path("/run/w.300"), vectors=1, size=2**30)
    shmem = read(shmem_xml.shmem("w.300", plug, bus=12))
    assert attributes(shmem, "server")["path"] == "/run/w.300"
    assert attributes(shmem, "msi")["vectors"] == "1"
    assert attributes(shmem, "address")["bus"] == "0x0c"
    assert attributes(shmem, "address")["slot"] == "0x00"


def test_no_two_names_have_one_alias() -> None:
    names = ["a.b", "a_b", "a-b", "a_-b", "a__b", "a_.b"]
    aliases = set()
    for name in names:
        device = DeviceConfig(name=name, memory=2**30)
        (alias,) = overridden(libvirt_xml.master(device, V10_0))
        assert alias.replace("-", "").replace("_", "").isalnum()
        aliases.add(alias)
    assert len(aliases) == len(names)


def test_any_path_survives_libvirt_and_qemu() -> None:
    odd = Path("""/a, <b> & "c's" """)
    device = DeviceConfig(name="web", memory=2**30, run_dir=odd, memory_dir=odd)
    master = read(libvirt_xml.master(device, V10_0))
    path = str(device.vhost_user)
    assert attributes(master, "devices/interface/source")["path"] == path
    assert f"mem-path={odd}/web".replace(",", ",,") in words(master)[-1]


CONFINED = DeviceConfig(name="web", mode=Mode.ATTACH, confined=64 * MIB)


def test_confined_master_has_one_shared_cell_and_no_memory_backing() -> None:
    master = read(libvirt_xml.master(CONFINED, V10_0, 2**32))
    assert master.find("memoryBacking") is None
    cells = [cell.attrib for cell in master.iterfind("cpu/numa/cell")]
    assert [cell.get("memAccess") for cell in cells] == [None, "shared", None, None]
    assert [cell["memory"] for cell in cells] == ["128", "128", "256", "3584"]
    assert words(master)[:2] == ["-machine", "max-ram-below-4g=512M,sata=off"]


def test_confined_masters_card_is_that_of_the_plain_arguments() -> None:
    """libvirt 11 takes no <interface> of vhost-user where a cell is private."""
    master = read(libvirt_xml.master(CONFINED, V10_0, 2**32))
    assert master.find("devices/interface") is None
    assert overridden(master) == {}
    plain = qemu_args.flat(qemu_args.master(CONFINED, V10_0, 2**32))
    card = plain[plain.index("-chardev") :]
    # libvirt gives no device of bus 0 this slot.
    assert words(master)[2:] == [*card[:-1], f"{card[-1]},addr=0x10"]


def test_confined_master_has_no_controller_of_libvirts() -> None:
    master = read(libvirt_xml.master(CONFINED, V10_0, 2**32))
    assert attributes(master, "devices/controller") == {"type": "usb", "model": "none"}
    assert attributes(master, "devices/memballoon") == {"model": "none"}


@pytest.mark.parametrize(
    ("kind", "mode"), [("kvm", "host-passthrough"), ("qemu", "maximum")]
)
def test_confined_master_on_a_virt_is_of_its_architecture(kind: str, mode: str) -> None:
    size = 6400 * MIB
    made = libvirt_xml.master(CONFINED, V10_0, size, kind=kind, machine=Machine.VIRT)
    master = read(made)
    assert attributes(master, "os/type") == {"arch": "aarch64", "machine": "virt"}
    # QEMU's usual processor for a virt has 32 bits.
    assert attributes(master, "cpu") == {"mode": mode}
    assert master.find("features/acpi") is None  # libvirt takes it with EFI only
    cells = [cell.attrib for cell in master.iterfind("cpu/numa/cell")]
    assert [cell.get("memAccess") for cell in cells] == [None, "shared", None]
    assert [cell["memory"] for cell in cells] == ["2884", "128", "3388"]
    assert "-machine" not in words(master)


def test_confined_master_on_a_q35_has_libvirts_processor_and_acpi() -> None:
    master = read(libvirt_xml.master(CONFINED, V10_0, 2**32))
    assert attributes(master, "os/type") == {"arch": "x86_64", "machine": "q35"}
    assert attributes(master, "cpu") == {}
    assert master.find("features/acpi") is not None


def test_slave_of_a_confined_master_has_ports_for_the_shared_region() -> None:
    slave = read(libvirt_xml.slave(CONFINED, 6 * 2**30))
    assert list(ports(slave).values()) == [256 * MIB] * 2


def test_confined_master_with_an_arena_is_none_of_libvirts() -> None:
    with pytest.raises(HostError, match="is in attach mode"):
        libvirt_xml.master(replace(ARENA, confined=64 * MIB), V10_0)

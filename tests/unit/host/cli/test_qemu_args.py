# SPDX-License-Identifier: Apache-2.0
"""QEMU's arguments, ready to paste into a shell."""

from dataclasses import replace
from pathlib import Path
from subprocess import run

import pytest

from vhostpci_host.cli import qemu_args
from vhostpci_host.cli.qemu_version import Version
from vhostpci_host.config.confined_layout import GIB, Machine, layout
from vhostpci_host.config.device import MIB, DeviceConfig, Mode
from vhostpci_host.config.features import PROFILES
from vhostpci_host.errors import HostError

DEVICE = DeviceConfig(name="web", memory=2**30)
ATTACHED = DeviceConfig(name="web", mode=Mode.ATTACH)
QEMU = Version(10, 0)
MANY = DeviceConfig(name="web", memory=2**30, queue_pairs=4)


def pasted(text: str) -> list[str]:
    """Return the words into which a shell splits the text."""
    command = ["sh", "-c", f"printf '%s\\n' {text}"]
    return run(command, capture_output=True, text=True).stdout.splitlines()


def values(args: qemu_args.Args, option: str) -> list[str]:
    return [value for name, value in args if name == option]


def test_master_has_the_arena_as_its_memory() -> None:
    args = qemu_args.master(DEVICE, QEMU)
    assert values(args, "-m") == ["1024M"]
    assert values(args, "-machine") == ["memory-backend=vhostpci-web-memory"]
    assert values(args, "-object") == [
        "memory-backend-file,id=vhostpci-web-memory,size=1024M,"
        "mem-path=/dev/shm/vhostpci/web,share=on"
    ]


def test_master_reconnects_and_keeps_its_offloads() -> None:
    args = qemu_args.master(DEVICE, QEMU)
    assert "reconnect" in values(args, "-chardev")[0]
    assert "ctrl_guest_offloads=off" in values(args, "-device")[0]
    assert "vectors=" not in values(args, "-device")[0]
    assert "queues=" not in values(args, "-netdev")[0]


@pytest.mark.parametrize(
    ("version", "option"),
    [
        (Version(7, 2), "reconnect=1"),
        (Version(9, 1), "reconnect=1"),
        (Version(9, 2), "reconnect-ms=1000"),
        (Version(10, 0), "reconnect-ms=1000"),
        (Version(11, 0), "reconnect-ms=1000"),
    ],
    ids=str,
)
def test_master_connects_again_by_the_option_that_its_qemu_knows(
    version: Version, option: str
) -> None:
    args = qemu_args.master(DEVICE, version)
    assert values(args, "-chardev")[0].split(",")[-1] == option


def test_master_of_a_daemon_that_connects_listens() -> None:
    device = DeviceConfig(name="web", memory=2**30, connect=Path("/run/web"))
    (chardev,) = values(qemu_args.master(device, QEMU), "-chardev")
    assert chardev == "socket,id=vhostpci-web,path=/run/web,server=on,wait=off"


@pytest.mark.parametrize(
    ("version", "known"),
    [(Version(7, 2), False), (Version(9, 0), False), (Version(9, 1), True)],
    ids=str,
)
def test_card_is_in_order_where_its_qemu_knows_that(
    version: Version, known: bool
) -> None:
    (card,) = values(qemu_args.master(DEVICE, version), "-device")
    assert ("in_order=on" in card.split(",")) is known


def test_card_is_not_in_order_where_the_device_does_not_offer_that() -> None:
    device = replace(DEVICE, features=PROFILES["vpp"])
    (card,) = values(qemu_args.master(device, Version(9, 1)), "-device")
    assert "in_order" not in card


@pytest.mark.parametrize("packed", [False, True])
def test_card_offers_packed_rings_only_if_that_is_wanted(packed: bool) -> None:
    (card,) = values(qemu_args.master(DEVICE, Version(10, 0), packed=packed), "-device")
    assert ("packed=on" in card.split(",")) is packed


def test_only_an_old_qemu_without_kvm_crashes_with_msix() -> None:
    assert qemu_args.needs_intx(Version(7, 2), tcg=True)
    assert not qemu_args.needs_intx(Version(7, 2), tcg=False)
    assert not qemu_args.needs_intx(Version(8, 0), tcg=True)


def test_hint_of_a_confined_master_says_how_large_its_initrd_may_be() -> None:
    def hint(memory: int, machine: Machine) -> str:
        its = layout(memory, 64 * MIB, machine, attached=False)
        return " ".join(qemu_args.confined_hint(its).replace("\n#", "").split())

    found = hint(8 * GIB, Machine.Q35)
    assert "A larger initrd than 344 MiB, with EFI than 384 MiB, comes to" in found
    assert "with EFI GRUB 2.06 (Debian 12's) puts Linux itself there" in found
    found = hint(GIB // 2, Machine.Q35)
    assert "A larger initrd than 16 MiB, and any with EFI, comes to lie" in found
    assert "initrd" not in hint(8 * GIB, Machine.VIRT)


def test_hints_are_for_what_the_vm_is() -> None:
    def hint(role: str, qemu: Version, *, tcg: bool) -> str:
        return qemu_args.hint(DEVICE, role, qemu, tcg=tcg)

    old, new = Version(7, 2), Version(10, 0)
    assert "add --tcg" in hint("master", old, tcg=False)
    assert "add --tcg" not in hint("master", old, tcg=True)
    assert "add --tcg" not in hint("master", new, tcg=False)
    assert "no_timer_check" in hint("slave", new, tcg=True)
    assert "no_timer_check" not in hint("slave", new, tcg=False)


def test_master_is_told_the_mac_address_that_its_card_gets() -> None:
    (card,) = values(qemu_args.master(DEVICE, QEMU), "-device")
    hint = qemu_args.hint(DEVICE, "master", QEMU, tcg=False)
    assert f"mac={qemu_args.mac('web')}," in card
    assert f"ip -br link | grep {qemu_args.mac('web')}\n" in hint


@pytest.mark.parametrize(
    "device", [DEVICE, replace(DEVICE, slave_qmp=Path("/q"))], ids=["there", "plugged"]
)
def test_slaves_windows_are_kept_from_what_is_reserved_for_amd(
    device: DeviceConfig,
) -> None:
    args = qemu_args.slave(device)
    assert values(args, "-global") == ["x86_64-cpu.phys-bits=39"]
    assert values(args, "-cpu") == []


def test_master_with_queue_pairs_has_vectors_for_all() -> None:
    args = qemu_args.master(MANY, QEMU)
    assert values(args, "-netdev")[0].endswith(",queues=4")
    assert values(args, "-device")[0].endswith(",mq=on,vectors=10")


def test_master_without_msix_for_qemu_7_2_under_tcg() -> None:
    assert values(qemu_args.master(DEVICE, QEMU, vectors=0), "-device")[0].endswith(
        ",vectors=0"
    )


def test_slave_has_a_vector_for_each_ring_and_one() -> None:
    assert values(qemu_args.slave(MANY), "-device")[0].endswith(",vectors=9")


def test_master_in_attach_mode_has_memory_that_can_be_shared() -> None:
    args = qemu_args.master(ATTACHED, QEMU, 2**32)
    assert values(args, "-m") == ["4096M"]
    assert values(args, "-object") == [
        "memory-backend-memfd,id=vhostpci-web-memory,size=4096M,share=on"
    ]


def test_master_in_attach_mode_has_memory_of_a_size_that_only_the_user_knows() -> None:
    with pytest.raises(HostError, match="give its size"):
        qemu_args.master(ATTACHED, QEMU)


def test_slave_has_a_port_for_the_doorbells_and_each_window() -> None:
    args = qemu_args.slave(replace(ATTACHED, slave_qmp=Path("/q")), 2**32, windows=2)
    ports = values(args, "-device")
    assert len(ports) == 3
    assert len({port.split("slot=")[1] for port in ports}) == 3
    assert all(port.endswith("pref64-reserve=8192M") for port in ports)
    assert values(args, "-qmp") == ["unix:/q,server=on,wait=off"]


def test_slave_that_is_plugged_the_arena_has_one_port() -> None:
    args = qemu_args.slave(replace(DEVICE, slave_qmp=Path("/q")))
    assert [port.split(",")[-1] for port in values(args, "-device")] == [
        "pref64-reserve=4096M"
    ]


def test_memory_that_no_slave_vm_can_show_is_refused_with_the_next_sizes() -> None:
    with pytest.raises(HostError, match="give the master 2048M or 4096M"):
        qemu_args.slave(replace(ATTACHED, slave_qmp=Path("/q")), 3 * 2**30)


def test_slave_in_attach_mode_is_plugged_or_a_process() -> None:
    with pytest.raises(HostError, match="--slave-qmp"):
        qemu_args.slave(ATTACHED)


def test_two_devices_differ_in_every_id_and_address() -> None:
    other = DeviceConfig(name="db", memory=2**30)
    both = {*qemu_args.slave(DEVICE)} & {*qemu_args.slave(other)}
    assert both == {*qemu_args.PLACE_FOR_WINDOWS}  # it may be given twice
    assert qemu_args.mac("web") != qemu_args.mac("db")
    assert qemu_args.mac("web").startswith("52:54:00:")


def test_comma_and_space_in_a_path_survive_qemu_and_the_shell() -> None:
    device = DeviceConfig(name="web", memory=2**30, run_dir=Path("/a, b"))
    args = qemu_args.slave(device)
    assert "path=/a,, b/web.ivshmem" in values(args, "-chardev")[0]
    assert pasted(qemu_args.text(args)) == qemu_args.flat(args)


def test_text_is_one_option_a_line_and_one_command_when_pasted() -> None:
    args = qemu_args.master(DEVICE, QEMU)
    assert len(qemu_args.text(args).splitlines()) == len(args)
    assert pasted(qemu_args.text(args)) == qemu_args.flat(args)


CONFINED = DeviceConfig(name="web", memory=2**32, confined=64 * MIB)


def test_confined_master_shows_one_part_of_its_memory() -> None:
    args = qemu_args.master(CONFINED, QEMU)
    assert values(args, "-m") == ["4096M"]
    assert values(args, "-machine") == ["q35,max-ram-below-4g=464M,sata=off"]
    objects = values(args, "-object")
    assert [one for one in objects if "memory-backend-ram" not in one] == [
        "memory-backend-file,id=vhostpci-web-shared,size=80M,"
        "mem-path=/dev/shm/vhostpci/web,share=on"
    ]
    assert len(objects) == len(values(args, "-numa")) == 4
    assert values(args, "-numa")[1] == "node,nodeid=1,memdev=vhostpci-web-shared"


def test_confined_master_in_attach_mode_has_a_memfd() -> None:
    config = DeviceConfig(name="web", mode=Mode.ATTACH, confined=64 * MIB)
    (shared,) = (
        one
        for one in values(qemu_args.master(config, QEMU, 2**32), "-object")
        if "memory-backend-ram" not in one
    )
    assert shared == ("memory-backend-memfd,id=vhostpci-web-shared,size=128M,share=on")


@pytest.mark.parametrize("ram", [1676 * MIB, None], ids=["given", "not-given"])
def test_slave_of_a_confined_master_has_ports_for_the_shared_region(
    ram: int | None,
) -> None:
    """However much memory the master has: the slave gets no more of it."""
    config = replace(ATTACHED, confined=64 * MIB, slave_qmp=Path("/q"))
    ports = values(qemu_args.slave(config, ram), "-device")
    assert [port.split(",")[-1] for port in ports] == ["pref64-reserve=256M"] * 2


def test_confined_masters_card_has_no_control_queue() -> None:
    (card,) = values(qemu_args.master(CONFINED, QEMU), "-device")
    assert card.endswith(
        ",iommu_platform=on,disable-legacy=on,ctrl_guest_offloads=off,ctrl_vq=off,"
        "ctrl_rx=off,ctrl_vlan=off,ctrl_rx_extra=off,ctrl_mac_addr=off,"
        "guest_announce=off,in_order=on"
    )


def test_confined_master_on_virt_has_no_chipset_options() -> None:
    config = replace(CONFINED, memory=2**33)
    args = qemu_args.master(config, QEMU, machine=Machine.VIRT)
    assert values(args, "-machine") == ["virt"]
    assert len(values(args, "-numa")) == 3


@pytest.mark.parametrize(
    ("config", "qemu", "message"),
    [
        (replace(CONFINED, memory=300 * MIB), QEMU, "give it 416M or more"),
        (CONFINED, Version(7, 1), "from QEMU 7.2 on, and this one is 7.1"),
    ],
    ids=["memory", "qemu"],
)
def test_confined_master_that_cannot_be_is_refused(
    config: DeviceConfig, qemu: Version, message: str
) -> None:
    with pytest.raises(HostError, match=message):
        qemu_args.master(config, qemu)

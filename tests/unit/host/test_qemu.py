# SPDX-License-Identifier: Apache-2.0
"""QEMU's arguments: ready to paste."""

from pathlib import Path
from subprocess import run

from vhostpci_host import qemu
from vhostpci_host.config import DeviceConfig

DEVICE = DeviceConfig(name="web", memory=2**30)
MANY = DeviceConfig(name="web", memory=2**30, queue_pairs=4)


def pasted(text: str) -> list[str]:
    """Return the words that a shell makes of it."""
    command = ["sh", "-c", f"printf '%s\\n' {text}"]
    return run(command, capture_output=True, text=True).stdout.splitlines()


def values(args: qemu.Args, option: str) -> list[str]:
    return [value for name, value in args if name == option]


def test_master_has_the_arena_as_its_memory() -> None:
    args = qemu.master(DEVICE)
    assert values(args, "-m") == ["1024M"]
    assert values(args, "-machine") == ["memory-backend=vhostpci-web-memory"]
    assert values(args, "-object") == [
        "memory-backend-file,id=vhostpci-web-memory,size=1024M,"
        "mem-path=/dev/shm/vhostpci/web,share=on"
    ]


def test_master_comes_back_and_keeps_its_offloads() -> None:
    args = qemu.master(DEVICE)
    assert values(args, "-chardev")[0].endswith(",reconnect=1")
    assert "ctrl_guest_offloads=off" in values(args, "-device")[0]
    assert "vectors=" not in values(args, "-device")[0]
    assert "queues=" not in values(args, "-netdev")[0]


def test_master_with_queue_pairs_has_vectors_for_all() -> None:
    args = qemu.master(MANY)
    assert values(args, "-netdev")[0].endswith(",queues=4")
    assert values(args, "-device")[0].endswith(",mq=on,vectors=10")


def test_master_without_msix_for_qemu_7_2_under_tcg() -> None:
    assert values(qemu.master(DEVICE, vectors=0), "-device")[0].endswith(",vectors=0")


def test_slave_has_a_vector_for_each_ring_and_one() -> None:
    assert values(qemu.slave(MANY), "-device")[0].endswith(",vectors=9")


def test_two_devices_differ_in_every_id_and_address() -> None:
    other = DeviceConfig(name="db", memory=2**30)
    assert not {v for _, v in qemu.slave(DEVICE)} & {v for _, v in qemu.slave(other)}
    assert qemu.mac("web") != qemu.mac("db")
    assert qemu.mac("web").startswith("52:54:00:")


def test_comma_and_space_in_a_path_survive_qemu_and_the_shell() -> None:
    device = DeviceConfig(name="web", memory=2**30, run_dir=Path("/a, b"))
    args = qemu.slave(device)
    assert "path=/a,, b/web.ivshmem" in values(args, "-chardev")[0]
    assert pasted(qemu.text(args)) == qemu.flat(args)


def test_text_is_one_option_a_line_and_one_command_when_pasted() -> None:
    args = qemu.master(DEVICE)
    assert len(qemu.text(args).splitlines()) == len(args)
    assert pasted(qemu.text(args)) == qemu.flat(args)

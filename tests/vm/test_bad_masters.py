# SPDX-License-Identifier: Apache-2.0
"""A master VM with the wrong memory: refused, with what to change, and it boots.

master, made wrongly       vhostpci-host
   virtio-net ------ vhost-user
"""

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.vm import image, qemu, wheels
from tests.vm.daemon import Daemon
from tests.vm.harness import Vm

pytestmark = pytest.mark.vm


def boot(daemon: Daemon, change: Callable[[str], str]) -> None:
    """Boot a master with changed arguments, until its driver is loaded."""
    args = [change(word) for word in daemon.qemu_args("master")]
    guest = image.build(wheels.guest_wheels())
    with Vm("master", guest, logs=daemon.log.parent, args=args) as vm:
        vm.wait_ready()
        vm.run("modprobe virtio_net && ip link set eth0 up")
        assert vm.is_running()


@pytest.fixture(scope="module")
def refused(logs: Path) -> Iterator[Daemon]:
    """A daemon that has refused a master whose memory is private."""
    with Daemon("card", memory="512M", logs=logs / "refused") as daemon:
        boot(daemon, lambda word: word.replace("share=on", "share=off"))
        yield daemon


def test_memory_that_is_not_shared(refused: Daemon) -> None:
    """Up to 10.0, QEMU shows its file, of which it has a copy; QEMU 11 nothing."""
    shown = int(qemu.version().partition(".")[0]) < 11
    refused.wait_said("privately" if shown else "shows no memory", "share=on")


def test_memory_that_is_not_the_arena(daemon: Daemon, tmp_path: Path) -> None:
    """The memory of another device, as after a copied command line."""
    other = tmp_path / "other"
    other.write_bytes(b"")
    with other.open("r+b") as file:
        file.truncate(2**30)
    arena = str(daemon.memory_dir / daemon.name)
    boot(daemon, lambda word: word.replace(f"mem-path={arena}", f"mem-path={other}"))
    daemon.wait_said("is not the arena", f"mem-path={arena}")


def test_next_master_with_the_right_memory_is_served(refused: Daemon) -> None:
    assert "started rings" not in refused.output()
    boot(refused, lambda word: word)
    refused.wait_said("started rings")

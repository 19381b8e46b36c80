# SPDX-License-Identifier: Apache-2.0
"""A confined master that boots from its disk: what GRUB puts where its slave can read.

disk: GRUB, kernel, initrd with a secret
  |
master ------ shared region, watched from QEMU's start on
"""

import os
import threading
from pathlib import Path

import pytest

from tests.vm import confined, grub_disk, image, process, tiny_guest
from tests.vm.confined import (
    KERNEL,
    MIB,
    PAGE,
    REGION,
    ConfinedMaster,
    Link,
)
from tests.vm.cpio import CpioWriter
from tests.vm.daemon import Daemon
from tests.vm.test_confined import exchange, keep_secrets, secrets

pytestmark = [pytest.mark.vm, pytest.mark.long]

SECRET = "initrd"
SMALL = 8
LARGE = {"BIOS": 210, "EFI": 110}
"""MiB that make an initrd too large for 256 MiB of boot memory."""


class Watch(threading.Thread):
    """Looks at the arena 20 times a second: which pages were touched, and the secret.

    A page that was touched once is seen from then on, since it has memory.
    """

    def __init__(self, arena: Path) -> None:
        super().__init__(daemon=True)
        self.secrets = 0
        """How much of the secret was seen at most."""
        self.first: set[int] = set()
        """The pages touched when Linux had not yet begun to clear the pool."""
        self._arena = arena
        self._end = threading.Event()

    def run(self) -> None:
        file = os.open(self._arena, os.O_RDONLY)
        while not self._end.wait(0.05):
            touched, data = _contents(file)
            self.secrets = max(self.secrets, data.count(confined.digest(SECRET)))
            if any(data) and len(touched) < confined.POOL // PAGE:
                self.first |= touched
        os.close(file)

    def stop(self) -> None:
        self._end.set()
        self.join()


def _contents(file: int) -> tuple[set[int], bytes]:
    """Return the pages of the region that have memory, and what is in them."""
    touched: set[int] = set()
    data = b""
    end = 0
    while end < REGION:
        try:
            start = os.lseek(file, end, os.SEEK_DATA)
        except OSError:
            break  # the rest is a hole
        end = min(os.lseek(file, start, os.SEEK_HOLE), REGION)
        touched |= {*range(start // PAGE, end // PAGE)}
        data += os.pread(file, max(0, end - start), start)
    return touched, data


def initrd_with_secret(target: Path, mib: int) -> Path:
    tree = target.with_suffix(".tree")
    tree.mkdir()
    (tree / "secret").write_bytes(confined.digest(SECRET) * (mib * MIB // 32))
    with target.open("wb") as file:
        archive = CpioWriter(file)
        archive.tree(tree)
        archive.close()
    return target


def from_disk(
    daemon: Daemon, here: Path, firmware: str, mib: int, logs: Path
) -> ConfinedMaster:
    """Return a master that boots from its disk, not started."""
    guest = image.build((), KERNEL)
    words = confined.command_line(daemon.kernel_words())
    disk = here / "disk"
    grub_disk.make(
        *(disk, KERNEL.suite),
        kernel=tiny_guest.build(KERNEL).kernel,
        initrds=[guest.initrd, initrd_with_secret(here / "secret", mib)],
        words=words,
    )
    args = [*daemon.qemu_args("master"), "-device", "virtio-blk-pci,drive=disk"]
    args += ["-drive", f"if=none,id=disk,format=raw,file={disk}"]
    if firmware == "EFI":
        args += grub_disk.firmware(KERNEL.suite, here / "variables")
    return ConfinedMaster("master", None, logs=logs, args=args)


@pytest.mark.parametrize("firmware", ["BIOS", "EFI"])
@pytest.mark.parametrize("large", [False, True], ids=["small", "large"])
def test_only_an_initrd_that_is_too_large_comes_into_the_region(
    logs: Path, tmp_path: Path, firmware: str, *, large: bool
) -> None:
    mib = LARGE[firmware] if large else SMALL
    here = logs / f"{firmware}-{mib}"
    here.mkdir(parents=True)
    with confined.served(here) as daemon:
        master = from_disk(daemon, tmp_path, firmware, mib, here)
        watch = Watch(daemon.memory_dir / daemon.name)
        watch.start()
        with master, process.serving(daemon, here / "agent.log") as slave:
            master.wait_ready(240)
            watch.stop()
            if large:
                assert watch.first
                return
            assert watch.secrets == 0
            assert not watch.first
            link = Link(daemon, master, slave)
            confined.wait_packets(link)
            keep_secrets(master)
            exchange(link)
            wanted = {SECRET: confined.digest(SECRET), **secrets(master)}
            found = confined.search(link.window, wanted).times
            assert found == dict.fromkeys(wanted, 0)
            kinds = master.pages(link.shared_region()).kinds
            assert set(kinds) == {"reserved", "allocated", "free"}

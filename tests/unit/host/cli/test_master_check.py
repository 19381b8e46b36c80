# SPDX-License-Identifier: Apache-2.0
"""The script that runs in a confined master finds each fault, in two shells."""

import os
import shutil
import subprocess
from collections.abc import Callable, Sequence
from pathlib import Path

import pytest

from vhostpci_host.cli.master_check import script
from vhostpci_host.config.confined import MIB
from vhostpci_host.config.confined_layout import GIB, Layout, Machine, layout

PAGE = 4096
POOL_START, RINGS_START, RINGS_END = 0x8000000, 0xC000000, 0xD000000
MAC = "52:54:00:12:34:56"
Q35 = layout(2 * GIB, 64 * MIB, Machine.Q35, attached=False)
WORDS = Q35.kernel_words()
RELEASE = "7.2.13-amd64"
RESERVED, FREE, SLAB, LRU_ANON = 1 << 32, 1 << 10, 1 << 7, 1 << 5 | 1 << 12

LOG = f"""\
[    0.000000] Linux version {RELEASE} (debian-kernel@lists.debian.org)
[    0.000000] Command line: console=ttyS0 {WORDS}
[    0.000500] RAMDISK: [mem 0x0ee54000-0x12aa3fff]
[    0.001000] cma: Reserved 16 MiB at 0x000000000c000000
[    0.020000] mem auto-init: stack:all(zero), heap alloc:on, heap free:off
[    0.500000] software IO TLB: mapped [mem 0x0000000008000000-0x000000000c000000] \
(64MB)
"""
IOMEM = """\
00000000-00000fff : Reserved
00001000-0009fbff : System RAM
000f0000-000fffff : System ROM
00100000-0cffffff : System RAM
  01000000-020fffff : Kernel code
  02200000-02bfffff : Kernel rodata
0d000000-1cffffff : Reserved
100000000-13fffffff : System RAM
"""
# Linux 7.2, with less in each zone.
ZONES = """\
Node 0, zone      DMA
  per-node stats
      nr_inactive_anon 0
  pages free     3840
        spanned  4095
        present  3998
        managed  3840
        protection: (0, 470, 240332, 240332, 240332)
      nr_free_pages 3840
  start_pfn:           1
Node 0, zone    DMA32
  pages free     120270
        spanned  1044480
        managed  120402
        cma      4096
        protection: (0, 0, 236492, 236492, 236492)
  start_pfn:           4096
Node 0, zone   Normal
  pages free     199966
        spanned  244736
        managed  236492
        protection: (0, 0, 0, 0, 0)
  start_pfn:           1048576
Node 0, zone  Movable
  pages free     0
        managed  0
        protection: (0, 0, 0, 0, 0)
"""


class FakeMaster:
    """The files of a confined master on which all is well."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.write("dmesg", LOG)
        self.write("proc/cmdline", f"console=ttyS0 {WORDS} -- init_on_alloc=0\n")
        self.write("proc/iomem", IOMEM)
        self.write("proc/zoneinfo", ZONES)
        self.swaps("/dev/vda2")
        self.write("sys/module/zswap/parameters/enabled", "N\n")
        self.write("proc/dma", " 4: cascade\n")
        self.write("proc/sys/kernel/osrelease", f"{RELEASE}\n")
        self.write(f"boot/config-{RELEASE}", "CONFIG_CMA=y\nCONFIG_DMA_CMA=y\n")
        self.write("sys/kernel/kexec_loaded", "0\n")
        self.virtio("virtio0", 32, 33, 5)
        self.write("sys/bus/virtio/devices/virtio0/net/eth0/address", f"{MAC}\n")
        self.virtio("virtio1", 32)
        self.driver("0000:00:02.0", "virtio-pci")
        self.driver("0000:00:03.0", "pcieport")
        self.driver("0000:00:01.0", "bochs-drm")
        self.write("proc/kpageflags", "")
        os.truncate(root / "proc/kpageflags", RINGS_END // PAGE * 8)
        self.flag(POOL_START, RINGS_START, RESERVED)
        self.flag(RINGS_START + MIB, RINGS_END, FREE)

    def write(self, path: str, text: str) -> None:
        file = self.root / path
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(text)

    def change(self, path: str, old: str, new: str) -> None:
        text = (self.root / path).read_text()
        assert old in text
        self.write(path, text.replace(old, new))

    def flag(self, start: int, end: int, flags: int) -> None:
        """Give all pages of a range these flags."""
        fd = os.open(self.root / "proc/kpageflags", os.O_WRONLY)
        data = flags.to_bytes(8, "little") * ((end - start) // PAGE)
        os.pwrite(fd, data, start // PAGE * 8)
        os.close(fd)

    def virtio(self, name: str, *bits: int) -> None:
        text = "".join("1" if bit in bits else "0" for bit in range(64))
        self.write(f"sys/bus/virtio/devices/{name}/features", f"{text}\n")

    def swaps(self, *files: str) -> None:
        lines = [f"{one}  partition 1048572 0 -2" for one in files]
        text = "\n".join(["Filename  Type  Size  Used  Priority", *lines])
        self.write("proc/swaps", f"{text}\n")

    def driver(self, device: str, name: str) -> None:
        place = self.root / "sys/bus/pci/drivers" / name
        place.mkdir(parents=True, exist_ok=True)
        link = self.root / "sys/bus/pci/devices" / device / "driver"
        link.parent.mkdir(parents=True, exist_ok=True)
        link.symlink_to(place)


@pytest.fixture
def master(tmp_path: Path) -> FakeMaster:
    return FakeMaster(tmp_path / "root")


@pytest.fixture(params=["dash", "busybox"])
def shell(request: pytest.FixtureRequest, tmp_path: Path) -> tuple[str, str]:
    """A shell, and where its programs are."""
    program = shutil.which(request.param)
    if program is None:
        pytest.skip(f"no {request.param} here")
    if request.param == "dash":
        return program, os.environ["PATH"]
    applets = tmp_path / "applets"
    applets.mkdir()
    for name in subprocess.check_output([program, "--list"], text=True).split():
        (applets / name).symlink_to(program)
    return str(applets / "sh"), str(applets)


def run(
    master: FakeMaster, shell: tuple[str, str], *arguments: str, its: Layout = Q35
) -> subprocess.CompletedProcess[str]:
    """Run the script in the master."""
    text = script("web", MAC, its, "vhostpci-host qemu-args web --role master")
    program, path = shell
    environment = {"PATH": path, "VHOSTPCI_ROOT": str(master.root)}
    return subprocess.run(
        [program, "-s", *arguments],
        input=text,
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )


def check(master: FakeMaster, shell: tuple[str, str], *arguments: str) -> set[str]:
    """Run the script; return the checks that failed."""
    lines = written(master, shell, *arguments)
    return {one.split()[1].rstrip(":") for one in lines if one.startswith("wrong ")}


def written(
    master: FakeMaster, shell: tuple[str, str], *arguments: str
) -> Sequence[str]:
    """Run the script; return its lines, which go together."""
    ran = run(master, shell, *arguments)
    assert ran.stderr == ""
    lines = ran.stdout.splitlines()
    wrong = {one.split()[1].rstrip(":") for one in lines if one.startswith("wrong ")}
    right = {one.split()[1].rstrip(":") for one in lines if one.startswith("ok ")}
    assert ran.returncode == bool(wrong)
    assert len(right | wrong) >= 14
    assert lines[-1].startswith(f"{len(right | wrong)} checks, {len(wrong)} wrong.")
    assert sum(one.startswith("       repair  ") for one in lines) == len(wrong)
    return lines


def test_a_confined_master_has_nothing_wrong(
    master: FakeMaster, shell: tuple[str, str]
) -> None:
    assert check(master, shell) == set()


def test_another_address_of_the_card_may_be_given(
    master: FakeMaster, shell: tuple[str, str]
) -> None:
    master.write("sys/bus/virtio/devices/virtio0/net/eth0/address", "02:00:00:00:00:01")
    assert check(master, shell, "02:00:00:00:00:01") == set()


def test_without_a_configuration_the_log_tells(
    master: FakeMaster, shell: tuple[str, str]
) -> None:
    (master.root / f"boot/config-{RELEASE}").unlink()
    assert check(master, shell) == set()


def test_quotes_are_where_the_boot_loader_puts_them(
    master: FakeMaster, shell: tuple[str, str]
) -> None:
    """GRUB puts them around the whole word."""
    key = "sysctl.vm.lowmem_reserve_ratio="
    master.change("proc/cmdline", f'{key}"1 1"', f'"{key}1 1"')
    assert check(master, shell) == set()


def test_a_word_that_lacks_is_told_with_its_quotes(
    master: FakeMaster, shell: tuple[str, str]
) -> None:
    _one_number(master)
    said = run(master, shell).stdout
    assert 'lacks sysctl.vm.lowmem_reserve_ratio="1 1"\n' in said


def _config(master: FakeMaster) -> None:
    master.change(f"boot/config-{RELEASE}", "CONFIG_DMA_CMA=y", "# not set")


def _neither(master: FakeMaster) -> None:
    (master.root / f"boot/config-{RELEASE}").unlink()
    master.change("dmesg", "cma: Reserved", "x")


def _last_word(master: FakeMaster) -> None:
    master.change("proc/cmdline", " --", " swiotlb=32768 --")


def _no_word(master: FakeMaster) -> None:
    master.change("proc/cmdline", "numa=off ", "")


def _one_number(master: FakeMaster) -> None:
    master.change("proc/cmdline", '"1 1"', "1")


def _no_quotes(master: FakeMaster) -> None:
    master.change("proc/cmdline", '"1 1"', "1 1")


def _crash_kernel_word(master: FakeMaster) -> None:
    master.change("proc/cmdline", " --", " crashkernel=256M,high --")


def _crash_kernel_size(master: FakeMaster) -> None:
    master.write("sys/kernel/kexec_crash_size", "268435456\n")


def _pool(master: FakeMaster) -> None:
    master.change("dmesg", "[mem 0x0000000008", "[mem 0x0000000004")


def _smaller_pool(master: FakeMaster) -> None:
    # Packets cross all the same, and the rest of the region is ordinary memory.
    master.change("dmesg", "[mem 0x0000000008", "[mem 0x000000000a")


def _two_pools(master: FakeMaster) -> None:
    line = "software IO TLB: mapped [mem 0x1000-0x2000] (0MB)\n"
    master.write("dmesg", LOG + line)


def _no_pool(master: FakeMaster) -> None:
    master.change("dmesg", "software IO TLB: mapped", "x")


def _other_cma(master: FakeMaster) -> None:
    master.change("dmesg", "16 MiB at 0x000000000c", "16 MiB at 0x0000000006")


def _more_cma(master: FakeMaster) -> None:
    master.write("dmesg", LOG + "cma: Reserved 8 MiB at 0x0000000002000000\n")


INITRD = "0x0ee54000-0x12aa3fff"


def _initrd_inside(master: FakeMaster) -> None:
    master.change("dmesg", INITRD, "0x0cd1c000-0x16f6bfff")


def _large_initrd(master: FakeMaster) -> None:
    master.change("dmesg", INITRD, "0x0e000000-0x1b0fffff")


def _large_initrd_for_efi(master: FakeMaster) -> None:
    (master.root / "sys/firmware/efi").mkdir(parents=True)
    master.change("dmesg", INITRD, "0x0e000000-0x160fffff")


def _short_log(master: FakeMaster) -> None:
    master.write("dmesg", "[9.0] eth0: link is up\n")


def _kernel_inside(master: FakeMaster) -> None:
    master.change("proc/iomem", "01000000-020fffff", "08000000-090fffff")


def _crash_kernel(master: FakeMaster) -> None:
    master.write("proc/iomem", f"{IOMEM}  0cf00000-0effffff : Crash kernel\n")


def _hidden(master: FakeMaster) -> None:
    master.write("proc/iomem", "00000000-00000000 : System RAM\n")


def _slab(master: FakeMaster) -> None:
    master.flag(POOL_START + MIB, POOL_START + MIB + PAGE, RESERVED | SLAB)


def _unreserved(master: FakeMaster) -> None:
    master.flag(RINGS_START - PAGE, RINGS_START, 0)


def _lent(master: FakeMaster) -> None:
    master.flag(RINGS_END - PAGE, RINGS_END, LRU_ANON)


def _usual_ratio(master: FakeMaster) -> None:
    # The word may be there: something sets another value later.
    master.change("proc/zoneinfo", "(0, 0, 236492, 236492,", "(0, 0, 923, 923,")


def _little_above(master: FakeMaster) -> None:
    master.change("proc/zoneinfo", "(0, 0, 236492, 236492,", "(0, 0, 120401, 120401,")


def _no_zone(master: FakeMaster) -> None:
    master.change("proc/zoneinfo", "spanned  1044480", "spanned  1024")


def _no_page_flags(master: FakeMaster) -> None:
    (master.root / "proc/kpageflags").unlink()


def _short_page_flags(master: FakeMaster) -> None:
    os.truncate(master.root / "proc/kpageflags", RINGS_START // PAGE * 8)


def _zram(master: FakeMaster) -> None:
    master.swaps("/dev/vda2", "/dev/zram0")


def _zswap(master: FakeMaster) -> None:
    master.write("sys/module/zswap/parameters/enabled", "Y\n")


def _no_clearing(master: FakeMaster) -> None:
    master.change("dmesg", "heap alloc:on", "heap alloc:off")


def _no_platform(master: FakeMaster) -> None:
    master.virtio("virtio0", 32)


def _no_card(master: FakeMaster) -> None:
    master.write("sys/bus/virtio/devices/virtio0/net/eth0/address", "02:00:00:00:00:01")
    master.virtio("virtio0", 32)


def _control_queue(master: FakeMaster) -> None:
    master.virtio("virtio0", 17, 32, 33)


def _other_platform(master: FakeMaster) -> None:
    master.virtio("virtio1", 32, 33)


def _ahci(master: FakeMaster) -> None:
    master.driver("0000:00:1f.2", "ahci")


def _floppy(master: FakeMaster) -> None:
    master.write("proc/dma", " 2: floppy\n 4: cascade\n")


def _iommu(master: FakeMaster) -> None:
    (master.root / "sys/class/iommu/dmar0").mkdir(parents=True)


def _kexec(master: FakeMaster) -> None:
    master.write("sys/kernel/kexec_loaded", "1\n")


@pytest.mark.parametrize(
    ("seed", "checks"),
    [
        (_config, {"kernel"}),
        (_neither, {"kernel", "rings"}),
        (_last_word, {"words"}),
        (_no_word, {"words"}),
        (_one_number, {"words"}),
        (_no_quotes, {"words"}),
        (_crash_kernel_word, {"crash-kernel"}),
        (_crash_kernel_size, {"crash-kernel"}),
        (_pool, {"pool"}),
        (_smaller_pool, {"pool"}),
        (_two_pools, {"pool"}),
        (_no_pool, {"pool"}),
        (_other_cma, {"rings"}),
        (_more_cma, {"rings"}),
        (_initrd_inside, {"initrd"}),
        (_large_initrd, {"initrd"}),
        (_large_initrd_for_efi, {"initrd"}),
        (_short_log, {"pool", "rings", "initrd"}),
        (_kernel_inside, {"places"}),
        (_crash_kernel, {"places"}),
        (_hidden, {"places"}),
        (_slab, {"pages"}),
        (_unreserved, {"pages"}),
        (_lent, {"pages"}),
        (_usual_ratio, {"lending"}),
        (_little_above, {"lending"}),
        (_no_zone, {"lending"}),
        (_no_page_flags, {"pages"}),
        (_short_page_flags, {"pages"}),
        (_zram, {"compression"}),
        (_zswap, {"compression"}),
        (_no_clearing, {"init-on-alloc"}),
        (_no_platform, {"card"}),
        (_no_card, {"card"}),
        (_control_queue, {"control-queue"}),
        (_other_platform, {"virtio"}),
        (_ahci, {"drivers"}),
        (_floppy, {"isa-dma"}),
        (_iommu, {"iommu"}),
        (_kexec, {"kexec"}),
    ],
)
def test_a_fault_is_found(
    master: FakeMaster,
    shell: tuple[str, str],
    seed: Callable[[FakeMaster], None],
    checks: set[str],
) -> None:
    seed(master)
    assert check(master, shell) == checks


def test_zswap_without_swap_compresses_nothing(
    master: FakeMaster, shell: tuple[str, str]
) -> None:
    _zswap(master)
    master.swaps()
    assert check(master, shell) == set()


def test_kernel_without_swap_is_well(
    master: FakeMaster, shell: tuple[str, str]
) -> None:
    (master.root / "proc/swaps").unlink()
    assert check(master, shell) == set()


def test_kernel_without_zswap_is_well(
    master: FakeMaster, shell: tuple[str, str]
) -> None:
    (master.root / "sys/module/zswap/parameters/enabled").unlink()
    assert check(master, shell) == set()


def test_pages_have_the_names_of_what_they_are_used_for(
    master: FakeMaster, shell: tuple[str, str]
) -> None:
    _slab(master)
    master.flag(POOL_START, POOL_START + 2 * PAGE, FREE)
    (line,) = (one for one in written(master, shell) if one.startswith("wrong "))
    assert {"1 slab", "2 free"} == set(line.rpartition(": ")[2].split(", "))


def test_kernel_without_an_initrd_is_well(
    master: FakeMaster, shell: tuple[str, str]
) -> None:
    master.change("dmesg", "RAMDISK", "x")
    assert check(master, shell) == set()


def test_initrd_of_a_virt_is_far_away(
    master: FakeMaster, shell: tuple[str, str]
) -> None:
    virt = layout(8 * GIB, 64 * MIB, Machine.VIRT, attached=False)
    _initrd_inside(master)
    assert "ok     initrd" not in run(master, shell, its=virt).stdout
    assert "wrong  initrd" not in run(master, shell, its=virt).stdout

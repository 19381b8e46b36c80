# SPDX-License-Identifier: Apache-2.0
"""The command line of stock QEMU on this machine."""

import os
import re
import subprocess
from functools import cache
from pathlib import Path

from tests.vm import qemus
from tests.vm.architecture import AMD64, Architecture
from tests.vm.image import Image

# A kernel that panics resets at once.  Its self-tests of ciphers take half a second
# under TCG.  On a loaded machine it may miss the ticks of its clock, and would panic
# ("timer doesn't work through Interrupt-remapped IO-APIC"); with KVM it never checks.
APPEND = f"console={AMD64.console} quiet panic=-1 cryptomgr.notests no_timer_check"
# The guest's clock goes on while a loaded machine gives its emulated CPU no time, so
# the kernel would report stalls and lockups that only say how loaded this machine is.
# A deadlock in the guest ends in the time-out of the test that meets it.
APPEND += " nowatchdog rcupdate.rcu_cpu_stall_suppress=1"


@cache
def binary() -> str:
    """The QEMU that VMs run unless a test chooses another one.

    It is VHOSTPCI_QEMU: a supported version (``10.0``) or a path; else this machine's.
    """
    chosen = os.environ.get("VHOSTPCI_QEMU") or qemus.PROGRAM
    supported = qemus.SUPPORTED.get(chosen)
    return supported.program() if supported else chosen


@cache
def version(program: str | None = None) -> str:
    """QEMU's version as it prints it: ``7.2.22``."""
    argv = [program or binary(), "--version"]
    text = subprocess.run(argv, capture_output=True, text=True).stdout
    found = re.search(r"version (\d+[.\d]*)", text)
    if not found:
        raise RuntimeError(f"{argv[0]} --version says {text!r}")
    return found[1]


@cache
def has_kvm() -> bool:
    """Whether KVM will run a stock kernel.

    /dev/kvm alone says nothing: it may be there on a machine whose processor
    cannot run a guest.
    """
    flags = re.search(r"^flags\s*:(.*)", Path("/proc/cpuinfo").read_text(), re.M)
    words = set(flags[1].split()) if flags else set()
    return bool(words & {"vmx", "svm"}) and os.access("/dev/kvm", os.R_OK | os.W_OK)


def append(architecture: Architecture) -> str:
    """Return the words of a guest's kernel."""
    return APPEND.replace(AMD64.console, architecture.console)


def accelerator(architecture: Architecture = AMD64) -> list[str]:
    """The options that choose between KVM and TCG."""
    if architecture is AMD64 and has_kvm():
        return ["-accel", "kvm", "-cpu", "host"]
    return ["-accel", "tcg,thread=multi", "-cpu", architecture.processor]


def machine(
    image: Image | None,
    *,
    cpus: int,
    iommu: bool,
    chipset: str | None = None,
    defaults: bool = False,
) -> list[str]:
    """A machine that boots ``image``, or else a disk.

    It has QEMU's default devices only with ``defaults``.
    """
    architecture = image.architecture if image else AMD64
    chipset = chipset or architecture.chipset
    # vfio-pci in the guest needs an IOMMU that remaps interrupts as well.
    chipset = f"{chipset},kernel-irqchip=split" if iommu else chipset
    unit = ["-device", "intel-iommu,intremap=on"] if iommu else []
    words = append(architecture) + (" intel_iommu=on" if iommu else "")
    how = accelerator(architecture)
    return [
        *(() if defaults else ("-nodefaults",)),
        *("-no-user-config", "-display", "none"),
        *("-machine", chipset, *how, "-smp", str(cpus), *unit),
        *(_direct(image, words) if image else ()),
    ]


def _direct(image: Image, words: str) -> list[str]:
    files = ["-kernel", str(image.kernel), "-initrd", str(image.initrd)]
    return [*files, "-append", words]


def ports(count: int, share: str = "1G") -> list[str]:
    """Root ports with a share of the address space for what is plugged in.

    Without one, firmware gives a port that is empty at boot a megabyte or two; the
    guest's kernel moves nothing later, and leaves a BAR that does not fit without an
    address.  So does it where newer firmware puts the ports of a wider processor
    (see the daemon's hotplug/root_ports.py).
    """
    narrow = ["-global", "x86_64-cpu.phys-bits=39"]
    return narrow + [
        word
        for number in range(count)
        for word in (
            "-device",
            f"pcie-root-port,id=port{number},chassis={number + 1},"
            f"slot={number + 1},pref64-reserve={share}",
        )
    ]


def lines(run_dir: Path, serial_log: Path) -> list[str]:
    """The guest's command server and console, and two monitors, as sockets."""
    listen = "server=on,wait=off"
    return [
        *("-device", "virtio-serial-pci"),
        *("-chardev", f"socket,id=test,path={run_dir / 'test'},{listen}"),
        *("-device", "virtserialport,chardev=test,name=vhostpci.test"),
        "-chardev",
        f"socket,id=console,path={run_dir / 'console'},{listen},logfile={serial_log}",
        *("-serial", "chardev:console"),
        *("-qmp", f"unix:{run_dir / 'qmp'},{listen}"),
        # A monitor serves one client at a time: this one is the daemon's.
        *("-qmp", f"unix:{run_dir / 'slave-qmp'},{listen}"),
    ]

# SPDX-License-Identifier: Apache-2.0
"""Checks of the QEMU that will run the VMs."""

import re
from collections.abc import Iterator

from vhostpci_shared.findings import CannotLook, Seen, error, ok, warn

from .hypervisor import Hypervisor

_OLDEST, _NEWEST = (7, 2), (11, 0)
"""The QEMUs between which vhostpci was tried (docs/interoperability.md)."""
_RECONNECT_MS = (9, 2)
"""The first with `reconnect-ms=`."""
_DEVICE = "ivshmem-doorbell"


def _program(host: Hypervisor) -> str:
    if host.qemu is None:
        raise CannotLook("there is no QEMU in PATH: --qemu names it")
    return host.qemu


def version(host: Hypervisor) -> Iterator[Seen]:
    """Look at the version, from which follows what arguments it takes."""
    if host.qemu is None:
        yield error(
            "PATH",
            "there is no qemu-system-x86_64",
            means="no VM can be started, or its QEMU is in another directory",
            repair="apt install qemu-system-x86, or vhostpci-host doctor --qemu PATH",
        )
        return
    said = host.machine.run(host.qemu, "-version")
    looked_at = f"{host.qemu} -version"
    found = re.search(r"QEMU emulator version (\d+)\.(\d+)", said.out)
    if said.status or found is None:
        text = (said.out + said.error).strip()[:200]
        yield error(
            looked_at,
            f"exit status {said.status}, {text!r}",
            means="this is no QEMU, or it cannot start",
            repair="vhostpci-host doctor --qemu PATH",
        )
        return
    number = int(found[1]), int(found[2])
    text = f"QEMU {number[0]}.{number[1]}"
    if number < _OLDEST:
        yield error(
            looked_at,
            text,
            means="it is older than all QEMUs with which vhostpci was tried",
            repair="install QEMU 7.2 or later",
        )
        return
    option = "reconnect-ms=" if number >= _RECONNECT_MS else "reconnect="
    newer = number[0] > _NEWEST[0]
    tried = "; it is newer than those with which vhostpci was tried" if newer else ""
    yield ok(looked_at, f"{text}, which takes {option}{tried}")


def has_ivshmem(host: Hypervisor) -> Iterator[Seen]:
    """Look whether the QEMU has the slave's device at all."""
    program = _program(host)
    looked_at = f"{program} -device help"
    said = host.machine.run(program, "-device", "help")
    if f'"{_DEVICE}"' in said.out:
        yield ok(looked_at, f"it has {_DEVICE}")
        return
    yield error(
        looked_at,
        f"it has no {_DEVICE}",
        means="it was built without: it can run masters, and no slave VM",
        repair="run the slave VM with your distribution's whole QEMU, or one that was "
        "built with CONFIG_IVSHMEM_DEVICE; or take a slave process (vhostpci-guest "
        "run --socket)",
    )


def kvm(host: Hypervisor) -> Iterator[Seen]:
    """Look whether VMs run by KVM."""
    if host.machine.exists("/dev/kvm"):
        yield ok("/dev/kvm", "it is there")
        return
    yield warn(
        "/dev/kvm",
        "it is not there",
        means="VMs are emulated, which is slow, and QEMU before 8.0 needs other "
        "arguments (vhostpci-host qemu-args --tcg)",
        repair="modprobe kvm_intel (or kvm_amd); switch virtualisation on in the "
        "machine's firmware",
    )


def architecture(host: Hypervisor) -> Iterator[Seen]:
    """Look whether it is an x86-64."""
    found = host.machine.architecture
    if found == "x86_64":
        yield ok("uname -m", found)
        return
    yield error(
        "uname -m",
        found,
        means="vhostpci was never tried on another processor than x86-64",
        repair="take an x86-64 hypervisor",
    )

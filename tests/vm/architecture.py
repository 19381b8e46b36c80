# SPDX-License-Identifier: Apache-2.0
"""The architectures of guests: this machine's, and one that QEMU emulates."""

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Architecture:
    """A processor's architecture."""

    name: str
    """What Debian calls it."""
    program: str
    """The QEMU that has it."""
    chipset: str
    """QEMU's machine, for guests that ask for no other."""
    processor: str
    """QEMU's ``-cpu`` without KVM."""
    console: str
    """The machine's serial port, by the name of its driver."""


AMD64 = Architecture(
    name="amd64",
    program="qemu-system-x86_64",
    chipset="q35",
    # With these two the guest copies by `rep movsb`, which TCG runs byte by byte: a
    # third of the throughput, whatever the network card is.
    processor="max,-erms,-fsrm",
    console="ttyS0",
)
ARM64 = Architecture(
    name="arm64",
    program="qemu-system-aarch64",
    chipset="virt",
    # The usual cipher of pointer authentication takes TCG long at each call.
    processor="max,pauth-impdef=on",
    console="ttyAMA0",
)

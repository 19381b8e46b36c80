# SPDX-License-Identifier: Apache-2.0
"""Read the metadata of a device that no agent serves, without binding it."""

import mmap
import os
import time
from contextlib import ExitStack, closing
from pathlib import Path

from vhostpci_shared import metadata as md

from ..errors import Unusable
from ..pci.config_space import memory_is_on
from ..pci.sysfs_device import UIO_VHOSTPCI, PciDevice
from .slave import Peek

_START = md.DEVICE + md.Device.layout.size
"""Bytes that are read: the header and the device's entry."""
_BEAT = 0.6
"""Seconds in which a daemon that lives raises its heartbeat."""


def peek(device: PciDevice) -> Peek | None:
    """Return the start of its metadata; None where only an agent may read it.

    Raises:
        OSError: the kernel does not map the window.
    """
    # Its node is open to one process at a time: an agent that starts now would fail.
    if device.driver == UIO_VHOSTPCI or device.bar_size(2) < md.SIZE:
        return None
    try:
        with ExitStack() as undo:
            # A read from a device whose memory is off gives all ones.  The claim keeps
            # an agent from binding it before its memory is off again.
            if not memory_is_on(device.config()):
                undo.enter_context(device.claimed())
                undo.enter_context(device.enabled())
            window = undo.enter_context(_metadata(device))
            before = window[:_START]
            time.sleep(_BEAT)
            return Peek(before, window[:_START])
    except Unusable:
        return None  # another agent, driver or process has it


def _metadata(device: PciDevice) -> "closing[mmap.mmap]":
    """Map the metadata, read-only."""
    path: Path = device.path / "resource2"
    fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        offset = device.bar_size(2) - md.SIZE
        return closing(mmap.mmap(fd, md.SIZE, prot=mmap.PROT_READ, offset=offset))
    finally:
        os.close(fd)

# SPDX-License-Identifier: Apache-2.0
"""What a daemon may not do, and what does it in its place."""

import contextlib
import grp
import importlib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from importlib.util import find_spec

import vhostpci_shared

from ..config.device import DeviceConfig
from ..errors import HostError
from ..filter import install
from ..filter.install import Choice, Filter
from ..hotplug.programs import Runner
from ..interfaces import Json

_QMP = "vhostpci_host.hotplug.qmp_vm"
_LIBVIRT = "vhostpci_host.hotplug.libvirt_vm"


@dataclass(frozen=True, slots=True)
class Filtered:
    """The filter of this process, and what runs programs where it may not.

    Args:
        filter: which system calls it may make.
        programs: runs virsh; None: as a child of this process, if there is no filter.
    """

    filter: Filter
    programs: Runner | None = None

    def describe(self) -> Json:
        """Return what `status` says of it."""
        return {"mode": str(self.filter.mode), "problem": self.filter.problem}

    def close(self) -> None:
        """End what runs programs; the filter stays."""
        if self.programs is not None:
            self.programs.close()


UNFILTERED = Filtered(Filter())


def filter_process(choice: Choice, devices: Sequence[DeviceConfig] | None) -> Filtered:
    """Filter the system calls of this process, from which there is no way back.

    Call it before a first thread runs, and a first descriptor is taken over.

    Args:
        choice: what the user wants.
        devices: all that will ever be served; None: others may be added.

    Raises:
        HostError: this machine cannot do what the user wants.
    """
    if choice is Choice.NONE:
        return UNFILTERED
    # A module in C cannot be loaded later, nor a program started.
    for module in _late_modules(devices):
        importlib.import_module(module)
    if devices is None:
        # A group may be named later, too: have the C library load now what asks for it.
        with contextlib.suppress(KeyError):
            grp.getgrnam("no group has this name")
    runner = Runner() if devices is None or _by_libvirt(devices) else None
    try:
        filter_ = install.filter_calls(choice)
    except HostError:
        if runner is not None:
            runner.close()
        raise
    if filter_.mode is Choice.NONE and runner is not None:
        runner.close()
        runner = None
    return Filtered(filter_, runner)


def _late_modules(devices: Sequence[DeviceConfig] | None) -> Iterable[str]:
    """Return the modules that these devices would load later.

    The relays' is not there on a machine without a compiler, which they report.
    """
    if find_spec(f"{vhostpci_shared.__name__}._relay") is not None:
        yield f"{vhostpci_shared.__name__}.relay_thread"
    if devices is None or any(one.slave_qmp is not None for one in devices):
        yield _QMP
    if devices is None or _by_libvirt(devices):
        yield _LIBVIRT


def _by_libvirt(devices: Sequence[DeviceConfig]) -> bool:
    return any(one.slave_libvirt is not None for one in devices)

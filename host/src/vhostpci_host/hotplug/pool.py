# SPDX-License-Identifier: Apache-2.0
"""The slave VMs that this daemon plugs into: one connection each, for all devices."""

import os
from pathlib import Path

from ..config.device import DeviceConfig
from ..interfaces import Plugger
from .programs import Programs
from .reconciler import Reconciler
from .vm import SlaveVm


class _Shared:
    """A slave VM, and the number of devices whose pluggers use it."""

    def __init__(self, vm: SlaveVm) -> None:
        self.vm = vm
        self.users = 0


class SlavePool:
    """Shares one connection to each slave VM among the devices that are plugged there.

    A QMP socket serves one client at a time: a second one waits until
    the first has disconnected.

    Args:
        programs: runs virsh; None: as a child of this process.
    """

    def __init__(self, programs: Programs | None = None) -> None:
        self._programs = programs
        self._vms: dict[str, _Shared] = {}

    def plugger(self, config: DeviceConfig) -> Plugger | None:
        """Return a plugger for this device's slave VM; None without hot-plug.

        The caller closes the plugger, and asks for another one of the same device
        only after that: two pluggers would undo each other's work.
        """
        if not config.plugged:
            return None
        where = _where(config)
        shared = self._vms.get(where)
        if shared is None:
            shared = self._vms[where] = _Shared(_vm(config, self._programs))
        shared.users += 1

        async def release() -> None:
            shared.users -= 1
            if not shared.users:
                # Before the await: a device that is added meanwhile must get a new
                # connection, and not the one that is being closed.
                del self._vms[where]
                await shared.vm.close()

        return Reconciler(config.name, where, shared.vm, release)


def _where(config: DeviceConfig) -> str:
    """Return the key of a slave VM: equal for all devices that are plugged there."""
    if config.slave_qmp is not None:
        # realpath: two paths to one socket must not become two connections, of which
        # QEMU would greet only the first.
        return os.path.realpath(config.slave_qmp)
    return str(config.slave_libvirt)


def _vm(config: DeviceConfig, programs: Programs | None) -> SlaveVm:
    """Return the slave VM of this configuration, not yet connected."""
    # The imports stand here so that a daemon without hot-plug does not load qemu.qmp.
    if config.slave_libvirt is not None:
        from .libvirt_vm import LibvirtVm
        from .virsh import Virsh

        return LibvirtVm(config.slave_libvirt, Virsh(programs=programs))
    from .qmp_vm import QmpVm

    return QmpVm(Path(_where(config)))

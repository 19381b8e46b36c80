# SPDX-License-Identifier: Apache-2.0
"""The slave VMs that this daemon plugs into: one way to each, for all its devices."""

import os
from pathlib import Path

from ..config.device import DeviceConfig
from ..interfaces import Plugger
from .reconciler import Hotplug
from .vm import SlaveVm


class _Shared:
    """A slave VM, and how many devices use it."""

    def __init__(self, vm: SlaveVm) -> None:
        self.vm = vm
        self.users = 0


class Slaves:
    """The slave VMs of this daemon, each asked over one connection.

    A QMP socket serves one client at a time: a second would wait for ever.
    """

    def __init__(self) -> None:
        self._vms: dict[str, _Shared] = {}

    def plugger(self, config: DeviceConfig) -> Plugger | None:
        """Return who plugs into this device's slave VM; None if nobody is to.

        Whoever gets it closes it, and asks for no other of the same device before
        that is done.
        """
        if not config.plugged:
            return None
        where = _where(config)
        shared = self._vms.get(where)
        if shared is None:
            shared = self._vms[where] = _Shared(_vm(config))
        shared.users += 1

        async def release() -> None:
            shared.users -= 1
            if not shared.users:
                del self._vms[where]
                await shared.vm.close()

        return Hotplug(config.name, where, shared.vm, release)


def _where(config: DeviceConfig) -> str:
    """Return one name for one VM, whichever way the user has written it."""
    if config.slave_qmp is not None:
        return os.path.realpath(config.slave_qmp)
    return str(config.slave_libvirt)


def _vm(config: DeviceConfig) -> SlaveVm:
    """Return the way to the slave VM; its library is loaded only where it is used."""
    if config.slave_libvirt is not None:
        from .libvirt_vm import LibvirtVm

        return LibvirtVm(config.slave_libvirt)
    from .qmp_vm import QmpVm

    return QmpVm(Path(_where(config)))

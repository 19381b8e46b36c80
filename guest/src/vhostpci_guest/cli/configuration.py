# SPDX-License-Identifier: Apache-2.0
"""The agent's configuration file, read again while its devices are served."""

import logging
from collections.abc import Set
from pathlib import Path
from typing import Any

from ..config.file import read
from ..config.settings import Settings
from ..dataplane.interface import Port
from ..errors import Unusable
from .device_ports import DevicePort, DevicePorts
from .separation import Helpers

log = logging.getLogger(__name__)


class Configuration:
    """What the user has set, and the file that says it.

    Args:
        file: where it is; None without one.
        ports: the ports of the agent, which follow it.
        helpers: read the file, and follow it as well.
    """

    def __init__(self, file: Path | None, ports: DevicePorts, helpers: Helpers) -> None:
        self._file = file
        self._ports = ports
        self._helpers = helpers
        self._new = ports.settings

    def read(self) -> Set[Port]:
        """Read the file again; return the ports whose data plane is to be closed.

        Raises:
            Unusable: the file has mistakes, or wants what needs a new agent; nothing
                has changed.
        """
        if self._file is None:
            raise Unusable(
                "there is no file to read again: this agent was started without "
                "--config; end it, and start it with other options",
                code="G003",
            )
        new = read(self._file, self._helpers.read_config(self._file))
        self._check(self._file, new)
        self._new = new
        return {port for port in self._ports.open_ports() if self._replaced(port)}

    def _check(self, file: Path, new: Settings) -> None:
        """Refuse what a running agent cannot do."""
        if names := self._ports.settings.needs_restart(new):
            raise Unusable(
                f"{file}: {', '.join(names)} changed: restart the agent for that",
                code="G004",
            )
        places = [plane.data_plane.place for plane in new.planes]
        if any(places) and self._helpers.sockets is None:
            raise Unusable(
                f"{file}: data-plane vhost-user is new: restart the agent for that",
                code="G005",
            )
        self._ports.check(new)

    def _replaced(self, port: DevicePort) -> list[str]:
        """Return the options of a port's data plane that change."""
        new = self._new.plane_of(port.name)
        return self._ports.settings.plane_of(port.name).changes(new)

    def apply(self) -> dict[str, Any]:
        """Do what was read; return what has changed, as `reload -j` prints it."""
        old, new = self._ports.settings, self._new
        ports = list(self._ports.open_ports())
        replaced = {port.name: self._replaced(port) for port in ports}
        restarted = {name: options for name, options in replaced.items() if options}
        # Before the helper follows the new settings: by these it would not know the
        # path of a socket that is to be removed.
        for port in ports:
            port.close_for(new.plane_of(port.name))
        self._helpers.use_config()
        for name in new.bridges:
            if name not in old.bridges:
                self._make_bridge(name)
        self._ports.use(new)
        self._ports.make_way()
        done = {port.name: port.change() for port in self._ports.open_ports()}
        changed = {name: one.changed for name, one in done.items() if one.changed}
        failed = {name: one.problems for name, one in done.items() if one.problems}
        log.info(
            "read %s again: %d changed, %d started again, %d failed",
            *(self._file, len(changed), len(restarted), len(failed)),
        )
        for name, problems in failed.items():
            log.warning("%s: %s", name, "; ".join(problems))
        agent = ["keep-tap"] if old.keep_tap != new.keep_tap else []
        return {
            "agent": agent,
            "changed": changed,
            "restarted": restarted,
            "failed": failed,
        }

    def _make_bridge(self, name: str) -> None:
        # A TAP that cannot join it says so for its device.
        try:
            self._helpers.make_bridge(name)
        except (Unusable, OSError) as why:
            log.warning("%s", why)

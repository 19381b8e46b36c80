# SPDX-License-Identifier: Apache-2.0
"""One device in the daemon's list, whether it is served or has failed."""

import os
from dataclasses import dataclass

from vhostpci_shared.errors import code_of

from ..config.device import DeviceConfig
from ..device.cleared import cleared
from ..device.status import describe, describe_failed, row
from ..errors import HostError
from ..interfaces import Json
from .server import Server


@dataclass(slots=True)
class Entry:
    """One device of the daemon: served, or failed."""

    config: DeviceConfig
    server: Server | None = None
    failure: str = ""
    arriving: bool = True
    """Whether `Daemon.add` has not come to its end yet."""
    leaving: bool = False

    def describe(self) -> Json:
        """Return what `status` says of it."""
        if self.server is None:
            return describe_failed(self.config, self.failure)
        server, carrier = self.server, self.server.carrier.describe()
        clock = server.state_clock
        found = describe(server.device, server.connect_problem, carrier, clock.look)
        return {**found, "socket_files": server.socket_files}

    def conversation(self, since: object) -> Json:
        """Return what its front-ends and we have said from entry `since` on.

        Raises:
            HostError: it has failed, or there is no such number.
        """
        if type(since) is not int:
            raise HostError(
                f"since {since!r}: write the number of an entry", code="H079"
            )
        if self.server is None:
            text = f"{self.config.name} has failed: {self.failure}"
            raise HostError(text, code=code_of(self.failure) or "H080")
        return {"pid": os.getpid(), **self.server.conversation.since(since)}

    def clear(self) -> None:
        """Have `stats` count from now on.

        Raises:
            HostError: the device failed, and nothing counts.
        """
        if self.server is None:
            text = f"{self.config.name}: failed: {self.failure}"
            raise HostError(text, code=code_of(self.failure) or "H081")
        self.server.device.cleared = cleared(self.describe())

    def row(self) -> Json:
        """Return what `list` says of it."""
        device = self.server.device if self.server else None
        why_off = self.server.carrier.why_off if self.server else ""
        found = row(self.config, device, self.failure, why_off=why_off)
        return {**found, "state": "leaving"} if self.leaving else found

# SPDX-License-Identifier: Apache-2.0
"""What all devices of one daemon have in common."""

import asyncio
import socket
from collections.abc import Callable
from dataclasses import dataclass, field

from ..interfaces import nothing
from ..ivshmem.linger import Linger
from ..ivshmem.relays import ThreadRelays
from ..keeper.store import DescriptorStore
from ..memory.attach import WindowIds
from .directories import Directories
from .given import GivenSockets


@dataclass(frozen=True, slots=True)
class Common:
    """What all devices of one daemon have in common."""

    loop: asyncio.AbstractEventLoop
    window_ids: WindowIds
    """Gives out the windows' numbers."""
    linger: Linger
    directories: Directories
    control: Callable[[socket.socket], None]
    """Answers the lines of one control connection."""
    relays: ThreadRelays | None = None
    """None: each device's loop passes kicks and calls on."""
    keeper: DescriptorStore | None = None
    """Keeps for a successor what the devices need; None without a keeper."""
    given: GivenSockets = field(default_factory=GivenSockets)
    """The sockets that systemd has made."""
    changed: Callable[[], None] = nothing
    """Called when a front-end or a slave has come or gone."""

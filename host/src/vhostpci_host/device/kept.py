# SPDX-License-Identifier: Apache-2.0
"""What a daemon leaves of a device: its leases, its windows, and all that they need."""

from dataclasses import dataclass

from ..ivshmem.kept import SlaveState, WindowState
from ..keeper.shelf import Left
from ..memory.kept import ArenaState, AttachedState
from ..vhost_user.kept import MasterState


@dataclass(frozen=True, slots=True)
class LeaseState:
    """The lease of a ring."""

    state: str
    session: int
    origin: int
    resumes: bool
    reported: int


@dataclass(frozen=True, slots=True)
class PublisherState:
    """What the agent was shown."""

    instance: int
    generation: int
    """At most one generation was published since."""
    last_session: int
    leases: tuple[LeaseState, ...]


@dataclass(frozen=True, slots=True)
class UnnamedState:
    """A window that the metadata names no more since a generation."""

    number: int
    generation: int


@dataclass(frozen=True, slots=True)
class WindowsState:
    """The windows that the slave can open."""

    sockets: tuple[WindowState, ...]
    named: tuple[int, ...]
    device: bool
    device_named: bool
    unnamed: tuple[UnnamedState, ...]
    plugged: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class AgentLeft:
    """What was known of the agent."""

    instance: int | None
    """Of the one that has served the slave; None if none has."""
    present: bool
    offers: int | None
    """The features that its data plane serves, or the last agent's did."""


@dataclass(frozen=True, slots=True)
class ListenerState:
    """A listening socket, and which file its path named."""

    socket: str
    path: str
    device: int
    inode: int


@dataclass(frozen=True, slots=True)
class ProcessState:
    """A process: its number alone may be given to another one later."""

    pid: int
    started: int
    """When it was started, as `/proc/PID/stat` says."""


@dataclass(frozen=True, slots=True)
class DroppedState:
    """A front-end that was disconnected because no agent served it, or for good."""

    process: ProcessState
    features: int
    """What its driver had acknowledged, and the agent's data plane must serve."""
    refused: str
    """Why its memory was refused; empty if it was not, and it may come back."""


@dataclass(frozen=True, slots=True)
class DeviceState:
    """A device, as a daemon leaves it to its successor."""

    name: str
    config: tuple[str, ...]
    """Its configuration: a successor with another one begins without this."""
    added: tuple[str, ...] | None
    """The options of a device that is in no file: each name, and its text."""
    doorbell: str
    arena: ArenaState | None
    attached: AttachedState | None
    listeners: tuple[ListenerState, ...]
    publisher: PublisherState
    windows: WindowsState
    agent: AgentLeft
    master: MasterState | None
    dropped: DroppedState | None
    """The front-end that may not come back, or not before an agent serves it."""
    slave: SlaveState | None


@dataclass(frozen=True, slots=True)
class DeviceLeft:
    """What a daemon before us has left of a device."""

    state: DeviceState
    kept: Left
    """The descriptors that the state names."""

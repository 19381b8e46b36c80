# SPDX-License-Identifier: Apache-2.0
"""The agent's own entry in a device's metadata, which the daemon reads."""

import os
from dataclasses import replace

from vhostpci_shared import metadata as md
from vhostpci_shared.access import Metadata
from vhostpci_shared.metadata import AgentFlag, AgentState

from ..interfaces import Device


class AgentEntry:
    """What the agent says of itself; `write` brings it into the metadata.

    Args:
        metadata: where it goes.
        device: whose vectors and binding it names.
    """

    def __init__(self, metadata: Metadata, device: Device) -> None:
        self._metadata = metadata
        self._device = device
        self._agent = md.Agent(
            # Never 0, which is what an entry has that no agent has written.
            instance=int.from_bytes(os.urandom(8)) | 1,
            vectors=device.vector_count,
            binding=device.binding,
        )

    @property
    def instance(self) -> int:
        """The number by which the daemon knows this agent."""
        return self._agent.instance

    @property
    def state(self) -> AgentState:
        """Whether the agent serves the device."""
        return self._agent.state

    @property
    def message(self) -> str:
        """Why the agent does not serve the device; else empty."""
        return self._agent.message

    def set_ready(self) -> None:
        self._agent = replace(self._agent, state=AgentState.READY, message="")

    def set_failed(self, why: str) -> None:
        self._agent = replace(self._agent, state=AgentState.FAILED, message=why)

    def set_waiting(self, why: str) -> None:
        self._agent = replace(self._agent, state=AgentState.WAITING, message=why)

    def set_mismatch(self, why: str) -> None:
        self._agent = replace(self._agent, state=AgentState.MISMATCH, message=why)

    def set_left(self) -> None:
        """Say that the agent ends; a failure stays, so that the reason can be read."""
        if self.state is not AgentState.FAILED:
            self._agent = replace(self._agent, state=AgentState.NONE, message="")

    def set_flag(self, flag: AgentFlag, *, on: bool) -> None:
        """Set one flag, or take it back."""
        flags = self._agent.flags | flag if on else self._agent.flags & ~flag
        self._agent = replace(self._agent, flags=flags)

    def set_plane(self, name: str, offers: int | None) -> None:
        """Set the data plane, and the features that it can serve; None: not known."""
        self._agent = replace(self._agent, data_plane=name, offers=offers or 0)
        self.set_flag(AgentFlag.OFFERS, on=offers is not None)

    def set_generation(self, generation: int) -> None:
        """Set the daemon's generation that the agent acts by."""
        self._agent = replace(self._agent, generation=generation)

    def beat(self) -> None:
        self._agent = replace(self._agent, heartbeat=self._agent.heartbeat + 1)

    def write(self) -> None:
        """Write the entry; `Metadata.write_agent` writes the generation last."""
        # Read again each time: an ivshmem server sends the vectors one by one.
        vectors = self._device.vector_count
        self._agent = replace(self._agent, vectors=vectors)
        self._metadata.write_agent(self._agent)

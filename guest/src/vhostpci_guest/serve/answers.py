# SPDX-License-Identifier: Apache-2.0
"""What the agent tells the daemon of one device: answers, failures, stopped rings."""

import logging

from vhostpci_shared import metadata as md
from vhostpci_shared.access import Metadata
from vhostpci_shared.metadata import AgentFlag, AgentState

from ..interfaces import Device
from .agent_entry import AgentEntry
from .rings import Rings

log = logging.getLogger(__name__)


class Answers:
    """Writes the agent's part of the metadata, and rings the daemon's doorbell.

    Args:
        metadata: where it is written.
        device: whose doorbells are rung.
        rings: whose states are written.
    """

    def __init__(self, metadata: Metadata, device: Device, rings: Rings) -> None:
        self._metadata = metadata
        self._device = device
        self._rings = rings
        self._entry = AgentEntry(metadata, device)
        self.daemon_peer = md.DAEMON_PEER
        """The peer number of the daemon, for its doorbell."""
        self.generation: int | None = None
        """The generation that we act by; None after `follow_again`."""
        self.served = False
        """Whether this agent has ever followed what the daemon wants of the device."""

    @property
    def state(self) -> AgentState:
        """What the daemon reads: whether the agent serves the device."""
        return self._entry.state

    @property
    def instance(self) -> int:
        """The number by which the daemon knows this agent."""
        return self._entry.instance

    @property
    def message(self) -> str:
        """Why the agent does not serve the device; else empty."""
        return self._entry.message

    @property
    def generation_changed(self) -> bool:
        """Whether the daemon has written something that we do not act by yet."""
        return self.generation != self._metadata.generation()

    def follow_again(self) -> None:
        """Have the metadata followed again, even if its generation is the same."""
        self.generation = None

    def set_ready(self, name: str) -> None:
        """Say in the next answer that the device is served."""
        if self._entry.state is not AgentState.READY:
            log.info("%s: serving %r", self._device.name, name)
        self._entry.set_ready()

    def set_tap(self, *, uso: bool) -> None:
        """Say in what is written next whether the TAP knows UDP packets with GSO."""
        self._entry.set_flag(AgentFlag.USO, on=uso)

    def set_plane(self, name: str, offers: int | None) -> None:
        """Say in what is written next which data plane there is.

        Args:
            name: as the option `--data-plane` has it, without its path.
            offers: virtio feature bits that it can serve; None: not known yet.
        """
        self._entry.set_plane(name, offers)

    def set_waiting(self, why: str) -> None:
        """Say in the next answer what the device waits for; no ring runs any more."""
        if self._is_new(AgentState.WAITING, why):
            log.info("%s: waiting: %s", self._device.name, why)
        self._entry.set_waiting(why)

    def set_mismatch(self, why: str) -> None:
        """Say in the next answer which features lack; no ring runs any more."""
        if self._is_new(AgentState.MISMATCH, why):
            log.warning("%s: %s", self._device.name, why)
        self._entry.set_mismatch(why)

    def _is_new(self, state: AgentState, why: str) -> bool:
        return (state, why) != (self._entry.state, self._entry.message)

    def set_failed(self, why: str) -> None:
        """Say in the next answer why the device is not served."""
        if why != self._entry.message:
            log.warning("%s: %s", self._device.name, why)
        self._entry.set_failed(why)

    def answer(self, generation: int) -> None:
        """Tell the daemon that we act by this generation."""
        self.generation = generation
        self._entry.set_generation(generation)
        self.announce()

    def answer_failed(self, why: str) -> None:
        """Tell the daemon why this device is not served, so that it does not wait."""
        self._entry.set_failed(why)
        self.answer(self._metadata.generation())

    def announce(self) -> None:
        """Write the agent's part of the metadata, and signal that to the daemon."""
        self.write()
        self._device.ring(self.daemon_peer, md.METADATA_VECTOR)

    def beat(self) -> None:
        """Write the agent's part with the next heartbeat."""
        self._entry.beat()
        self.write()

    def write(self) -> None:
        """Write the agent's part of the metadata."""
        # The rings first: the agent's entry ends with the generation, at which the
        # daemon takes all that belongs to the answer for written.
        self._rings.write_status(self._metadata)
        self._entry.write()

    def leave(self) -> None:
        """Tell the daemon that this agent ends."""
        self._entry.set_left()
        self.announce()

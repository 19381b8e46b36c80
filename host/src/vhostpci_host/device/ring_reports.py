# SPDX-License-Identifier: Apache-2.0
"""What the agent reports of each ring: whether it has left one that it is to serve."""

import logging

from vhostpci_shared import metadata as md
from vhostpci_shared.access import Metadata
from vhostpci_shared.metadata import AgentRingState
from vhostpci_shared.wire import ProtocolError

from ..config.commands import master_arguments
from ..config.device import DeviceConfig
from ..vhost_user.front_end_setup import FrontEndSetup
from .publisher import Publisher
from .ring_lease import Lease

log = logging.getLogger(__name__)

RENEW_PAUSE = 1.0
"""Seconds until a ring that the agent left as fenced is given to it again."""


_NOT_BOUNCED = (
    ": if its buffers lie outside of the shared region, the master's kernel lacks the "
    "word swiotlb=, with force, or has its bounce pool elsewhere (`%s`)"
)


class RingReports:
    """Reads the agent's entry of each running ring, and acts on the bad news.

    Args:
        config: the device's, for the log.
        metadata: the region that the agent writes its entries in.
        publisher: has the leases.
    """

    def __init__(
        self, config: DeviceConfig, metadata: Metadata, publisher: Publisher
    ) -> None:
        self._name = config.name
        self._arguments = master_arguments(config.name, config.mode)
        self._metadata = metadata
        self._publisher = publisher
        self._seen: tuple[bytes, int] | None = None
        self.later = False
        """Whether to look again although the agent writes nothing new."""

    def look(self, setup: FrontEndSetup | None, now: float) -> None:
        """Act on each ring that the agent reports as broken or fenced.

        This is called for each device once a second, so nothing is parsed while neither
        the agent's bytes nor any lease has changed.
        """
        leases = self._publisher.leases
        raw = self._metadata.agent_ring_bytes(len(leases))
        state = raw, self._publisher.last_session
        if setup is None or state == self._seen:
            return
        self.later = False
        for lease in leases:
            if lease.running:
                self.later |= self._look_at(lease, raw, setup, now)
        # A ring whose renewal has to wait is looked at again though nothing changes.
        self._seen = None if self.later else (raw, self._publisher.last_session)

    def _look_at(
        self, lease: Lease, raw: bytes, setup: FrontEndSetup, now: float
    ) -> bool:
        """Act on one ring's entry; return whether to look at it again."""
        size = md.AgentRing.layout.size
        try:
            said = md.AgentRing.parse(raw[lease.index * size :][:size])
        except ProtocolError:
            return False
        if said.session != lease.session:
            return False  # the agent does not know of this session yet
        if said.state is AgentRingState.BROKEN and lease.reported != lease.session:
            lease.reported = lease.session
            self._report_broken(lease, setup)
        elif said.state is AgentRingState.FENCED:
            # Two writers that fence each other off must not do so at full speed.
            if now - lease.renewed_at < RENEW_PAUSE:
                return True
            log.info(
                "%s: the agent reports ring %d as fenced: giving it the ring again",
                self._name,
                lease.index,
            )
            lease.renew(now)
        return False

    def _report_broken(self, lease: Lease, setup: FrontEndSetup) -> None:
        log.warning(
            "%s: the master's driver broke ring %d; it works again when the driver "
            "is loaded again%s",
            self._name,
            lease.index,
            _NOT_BOUNCED % self._arguments if setup.confined else "",
        )
        err = setup.rings[lease.index].err
        if err is not None:
            err.signal()

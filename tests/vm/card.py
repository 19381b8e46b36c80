# SPDX-License-Identifier: Apache-2.0
"""The daemon's side of a device in a slave VM that has no daemon."""

import mmap
import time
from collections.abc import Iterator
from contextlib import contextmanager

from tests.fakes.bar import FEATURES, pair
from tests.fakes.pair import Background
from tests.vm.bare_slave import Slave
from vhostpci_shared import metadata as md
from vhostpci_shared.access import Metadata, find

MIB = 2**20


class Card:
    """The daemon's side of a device, whose rings run in the windows that it names."""

    def __init__(self, memory: int) -> None:
        self._map = mmap.mmap(memory, MIB)
        self.metadata = Metadata(find(memoryview(self._map)))
        self.metadata.format()
        self._session = 1

    def publish(self, *regions: md.Region) -> int:
        """Name the master's memory; its rings run in it, if there is any.

        Return the generation, which the agent answers.
        """
        self._session += 1
        flags = {} if regions else {"flags": 0}
        rings = tuple(pair(self._session, **flags))
        device = md.Device(
            instance=1,
            features=FEATURES,
            flags=md.DeviceFlag.MASTER,
            queue_pairs=1,
            vectors=3,
            daemon_peer=md.DAEMON_PEER,
            mtu=0,
            region_count=0,
            ring_count=0,
            name="net0",
        )
        return self.metadata.publish(device, regions, rings)

    def live(self) -> None:
        """Write the daemon's heartbeat, as often as a daemon does."""
        self.metadata.beat()
        time.sleep(0.1)

    def close(self) -> None:
        self.metadata.release()
        self._map.close()


@contextmanager
def plugged(slave: Slave) -> Iterator[Card]:
    """A device in the first root port, with a daemon that lives."""
    card = Card(slave.plug(0, MIB, "port0", vectors=3))
    card.publish()
    with Background(card.live):
        yield card
    card.close()

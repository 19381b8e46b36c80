# SPDX-License-Identifier: Apache-2.0
"""How fast packets cross a device, by what its agent counts.

The agent writes its counts five times a second, and may write anything: the rates are
only shown.  They are means over some seconds, so that the moment at which the agent
wrote last makes little difference.
"""

from collections import deque
from typing import NamedTuple

from vhostpci_shared.access import Metadata
from vhostpci_shared.metadata import AgentRing

from ..interfaces import Json

SAMPLES = 6
"""Samples that are kept, one a second: rates are means over five seconds."""
_LARGEST = 2**64
"""Above each count: what an agent writes wraps there."""


class _Sums(NamedTuple):
    """What all rings of one direction have moved."""

    packets: int = 0
    octets: int = 0


class _Sample(NamedTuple):
    at: float
    to_master: _Sums
    from_master: _Sums


class Traffic:
    """Keeps what crossed in the last seconds.

    Args:
        metadata: in which the agent counts.
        rings: how many there are.
    """

    def __init__(self, metadata: Metadata, rings: int) -> None:
        self._metadata = metadata
        self._rings = rings
        self._raw = b""
        self._samples: deque[_Sample] = deque(maxlen=SAMPLES)

    def sample(self, now: float) -> None:
        """Look at the counts; called once a second for each device."""
        raw = self._metadata.agent_ring_bytes(self._rings)
        last = self._samples[-1] if self._samples else None
        if last is not None and raw == self._raw:
            self._samples.append(last._replace(at=now))
            return
        self._raw = raw
        new = _Sample(now, _sums(raw, 0), _sums(raw, 1))
        # Another agent begins at 0.
        if last is not None and not _grows(last, new):
            self._samples.clear()
        self._samples.append(new)

    def rates(self) -> Json | None:
        """Return the rates, as `status -j` has them; None until there are two samples.

        The names are seen from the master's card, as those of the rings are.
        """
        if len(self._samples) < 2:
            return None
        first, last = self._samples[0], self._samples[-1]
        seconds = last.at - first.at
        if seconds <= 0:
            return None
        return {
            "seconds": round(seconds, 3),
            **_rates("rx", first.to_master, last.to_master, seconds),
            **_rates("tx", first.from_master, last.from_master, seconds),
        }


def _sums(raw: bytes, first: int) -> _Sums:
    """Return the sums of each second ring, from ring `first` on."""
    packets = octets = 0
    # Without `parse`: it makes an object of each ring, and refuses a bad state.
    for index, entry in enumerate(AgentRing.layout.iter_unpack(raw)):
        if index % 2 == first:
            packets += entry[3]
            octets += entry[4]
    return _Sums(packets % _LARGEST, octets % _LARGEST)


def _grows(before: _Sample, after: _Sample) -> bool:
    return all(
        old <= new
        for pair in zip(before[1:], after[1:], strict=True)
        for old, new in zip(*pair, strict=True)
    )


def _rates(way: str, first: _Sums, last: _Sums, seconds: float) -> Json:
    return {
        f"{way}_packets": round((last.packets - first.packets) / seconds, 1),
        f"{way}_bits": round(8 * (last.octets - first.octets) / seconds, 1),
    }

# SPDX-License-Identifier: Apache-2.0
"""How fast packets cross, by what an agent says, which may be anything."""

from collections.abc import Iterator

import pytest

from vhostpci_host.device.traffic import Traffic
from vhostpci_shared import metadata as md
from vhostpci_shared.access import Metadata


@pytest.fixture
def metadata() -> Iterator[Metadata]:
    metadata = Metadata(memoryview(bytearray(md.SIZE)))
    yield metadata
    metadata.release()


def say(metadata: Metadata, index: int, packets: int, octets: int) -> None:
    metadata.write_agent_ring(index, md.AgentRing(packets=packets, octets=octets))


def test_rates_are_means_over_the_last_seconds(metadata: Metadata) -> None:
    traffic = Traffic(metadata, 4)
    assert traffic.rates() is None
    for second in range(20):
        say(metadata, 0, 10 * second, 1000 * second)
        say(metadata, 2, 10 * second, 1000 * second)
        say(metadata, 3, 7 * second, 70 * second)
        traffic.sample(100.0 + second)
    assert traffic.rates() == {
        "seconds": 5.0,
        "rx_packets": 20.0,
        "rx_bits": 16000.0,
        "tx_packets": 7.0,
        "tx_bits": 560.0,
    }


def test_rates_of_an_agent_that_counts_no_more_become_0(metadata: Metadata) -> None:
    traffic = Traffic(metadata, 2)
    for second in range(10):
        say(metadata, 0, min(second, 2), 100)
        traffic.sample(float(second))
    rates = traffic.rates()
    assert rates is not None
    assert rates["rx_packets"] == 0


def test_another_agent_begins_at_0(metadata: Metadata) -> None:
    traffic = Traffic(metadata, 2)
    say(metadata, 0, 1000, 100000)
    traffic.sample(1.0)
    say(metadata, 0, 1, 100)
    traffic.sample(2.0)
    assert traffic.rates() is None
    say(metadata, 0, 3, 300)
    traffic.sample(3.0)
    rates = traffic.rates()
    assert rates is not None
    assert (rates["rx_packets"], rates["rx_bits"]) == (2.0, 1600.0)


def test_any_counts_give_numbers(metadata: Metadata) -> None:
    traffic = Traffic(metadata, 2)
    traffic.sample(1.0)
    for index in range(2):
        say(metadata, index, 2**64 - 1, 2**64 - 1)
    traffic.sample(1.0)
    assert traffic.rates() is None
    traffic.sample(2.0)
    rates = traffic.rates()
    assert rates is not None
    assert rates["tx_bits"] >= 0

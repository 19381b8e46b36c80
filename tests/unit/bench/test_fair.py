# SPDX-License-Identifier: Apache-2.0
"""What the part "fair" reads of ping's output."""

import pytest

from tests.bench.parts import fair

OUTPUT = """\
PING 10.9.0.1 (10.9.0.1) 56(84) bytes of data.
64 bytes from 10.9.0.1: icmp_seq=1 ttl=64 time=0.250 ms
64 bytes from 10.9.0.1: icmp_seq=3 ttl=64 time=2.00 ms
64 bytes from 10.9.0.1: icmp_seq=4 ttl=64 time=12 ms

--- 10.9.0.1 ping statistics ---
4 packets transmitted, 3 received, 25% packet loss, time 15ms
rtt min/avg/max/mdev = 0.250/4.750/12.0/5.0 ms
"""


def test_round_trips_are_those_of_each_ping_that_came_back() -> None:
    sample = fair.Sample(fair.round_trips(OUTPUT), rate=1.0)
    assert list(sample.microseconds) == pytest.approx([250, 2000, 12000])
    assert sample.percentile(50) == pytest.approx(2000)
    assert sample.percentile(99) > 11000

# SPDX-License-Identifier: Apache-2.0
"""Which rings a back-end is given at all."""

import pytest

from vhostpci_guest.dataplane.interface import MemRegion, RingConf, RingRefused
from vhostpci_guest.dataplane.vhost_user.messages import check_areas

START = 0x10000
SIZE = 16
AREAS = {"desc": 16 * SIZE, "driver": 6 + 2 * SIZE, "device": 6 + 8 * SIZE}
REGIONS = [MemRegion(START, 0x1000, 0), MemRegion(START + 0x1000, 0x1000, 0)]


def conf(size: int = SIZE, **areas: int) -> RingConf:
    """Return a ring whose areas begin where the memory does, but for `areas`."""
    return RingConf(
        desc=areas.get("desc", START),
        driver=areas.get("driver", START),
        device=areas.get("device", START),
        size=size,
        base=0,
        hdr_len=12,
        max_packet=65535,
    )


@pytest.mark.parametrize("area", AREAS)
def test_area_may_end_with_its_region(area: str) -> None:
    check_areas(conf(**{area: START + 0x2000 - AREAS[area]}), REGIONS)


@pytest.mark.parametrize("area", AREAS)
@pytest.mark.parametrize("end", [START + 0x1000, START + 0x2000])
def test_area_must_not_reach_past_its_region(area: str, end: int) -> None:
    with pytest.raises(RingRefused, match="not in the memory table"):
        check_areas(conf(**{area: end - AREAS[area] + 1}), REGIONS)


@pytest.mark.parametrize("size", [0, 3, 65536])
def test_size_of_a_split_ring(size: int) -> None:
    with pytest.raises(RingRefused, match="no power of two"):
        check_areas(conf(size), REGIONS)


def test_area_below_all_memory() -> None:
    with pytest.raises(RingRefused):
        check_areas(conf(desc=START - 1), REGIONS)

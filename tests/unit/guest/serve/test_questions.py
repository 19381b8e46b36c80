# SPDX-License-Identifier: Apache-2.0
"""What a client of the status socket may read of a window, and what not."""

from base64 import b64decode

import pytest

from tests.fakes.bar import pair
from tests.unit.guest.bench import Bench
from vhostpci_guest.errors import Refused
from vhostpci_guest.serve.questions import MOST, answer
from vhostpci_shared import metadata as md


def read(bench: Bench, **request: object) -> bytes:
    assert bench.link is not None
    found = answer(bench.link, {"command": "read", **request})
    assert isinstance(found, dict)
    return b64decode(found["data"])


def test_window_is_read_where_it_is_asked(bench: Bench) -> None:
    bench.publish(*pair(2))
    start = bench.device.window.size - md.SIZE
    assert read(bench, window=0, offset=start, length=8) == md.MAGIC


@pytest.mark.parametrize(
    "request_",
    [
        {"window": 0, "offset": -1, "length": 8},
        {"window": 0, "offset": 0, "length": 0},
        {"window": 0, "offset": 0, "length": -8},
        {"window": 0, "offset": 0, "length": MOST + 1},
        {"window": 0, "offset": 1 << 70, "length": 8},
        {"window": 0, "offset": "END", "length": 8},
        {"window": 4711, "offset": 0, "length": 8},
        {"window": "0", "offset": 0, "length": 8},
        {},
    ],
    ids=str,
)
def test_what_is_not_there_is_refused(
    bench: Bench, request_: dict[str, object]
) -> None:
    if request_.get("offset") == "END":
        request_ = {**request_, "offset": bench.device.window.size - 7}
    with pytest.raises(Refused):
        read(bench, **request_)


def test_counters_are_cleared_for_all_who_ask_and_go_on_for_the_others(
    bench: Bench,
) -> None:
    assert bench.link is not None
    bench.publish(*pair(2))
    bench.plane.move(0, 3, packets=4)
    assert bench.link.status()["cleared"] is None
    assert answer(bench.link, {"command": "clear"}) == {}
    bench.plane.move(0, 4, packets=6)
    status = bench.link.status()
    assert status["cleared"]["rings"][0]["stats"]["packets"] == 4
    assert status["rings"][0]["stats"]["packets"] == 6


@pytest.mark.parametrize(
    ("snaplen", "why"), [(100, "moves packets outside"), (0, "no command 'capture'")]
)
def test_data_plane_outside_of_the_agent_has_no_capture(
    bench: Bench, snaplen: int, why: str
) -> None:
    bench.publish(*pair(2))
    assert bench.link is not None
    with pytest.raises(Refused, match=why):
        answer(bench.link, {"command": "capture", "snaplen": snaplen})


def test_nothing_is_captured_before_there_is_a_data_plane(bench: Bench) -> None:
    assert bench.link is not None
    with pytest.raises(Refused, match="no ring has run yet"):
        answer(bench.link, {"command": "capture", "snaplen": 100})

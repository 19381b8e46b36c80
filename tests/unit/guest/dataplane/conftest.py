# SPDX-License-Identifier: Apache-2.0
"""Where the rings of a test start, in either format."""

import pytest

from tests.fakes.packed_driver import FRESH, LAP_END

SPLIT = {"split-0": 0, "split-65534": 2**16 - 2}
PACKED = {"packed-fresh": FRESH, "packed-lap-end": LAP_END}


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """Run a test that takes `start` with both formats, or with the one it names."""
    own = any(
        "start" in mark.args[0]
        for mark in metafunc.definition.iter_markers("parametrize")
    )
    if "start" not in metafunc.fixturenames or own:
        return
    only_split = metafunc.definition.get_closest_marker("split_ring")
    only_packed = metafunc.definition.get_closest_marker("packed_ring")
    starts = ({} if only_packed else SPLIT) | ({} if only_split else PACKED)
    metafunc.parametrize("start", list(starts.values()), ids=list(starts))

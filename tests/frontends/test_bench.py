# SPDX-License-Identifier: Apache-2.0
"""The benchmarks that need no VM work with the ring as it is."""

from pathlib import Path

import pytest

from tests.bench.parts import bulk, ring
from tests.bench.plan import Plan

pytestmark = pytest.mark.frontends


@pytest.mark.parametrize("case", bulk.CASES, ids=lambda case: case.name)
def test_packets_go_through_the_ring_and_past_it(
    tmp_path: Path, case: bulk.Case
) -> None:
    found = bulk.rounds(bulk.build(tmp_path), case, 3)
    assert found.shape == (3, 2)
    assert found.min() > 0


def test_one_driver_works_with_both_sides_in_turn(tmp_path: Path) -> None:
    program = ring.build(tmp_path)
    for path in ("split mergeable", "split inorder non-mergeable"):
        output = ring.run(program, ring.PATHS[path], Plan(quick=True))
        assert output.version.startswith("DPDK")
        found = list(ring.figures(path, output))
        assert len(found) == 4
        assert {len(figure.ours_runs) for figure in found} == {5}

# SPDX-License-Identifier: Apache-2.0
"""The benchmark of the ring: DPDK's driver sends and receives through both sides."""

from pathlib import Path

import pytest

from tests.bench.parts import ring
from tests.bench.plan import Plan

pytestmark = pytest.mark.frontends


def test_one_driver_works_with_both_sides_in_turn(tmp_path: Path) -> None:
    program = ring.build(tmp_path)
    for path in ("split mergeable", "split inorder non-mergeable"):
        output = ring.run(program, ring.PATHS[path], Plan(quick=True))
        assert output.version.startswith("DPDK")
        found = list(ring.figures(path, output))
        assert len(found) == 4
        assert {len(figure.ours_runs) for figure in found} == {5}

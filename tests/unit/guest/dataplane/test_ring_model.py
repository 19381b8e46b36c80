# SPDX-License-Identifier: Apache-2.0
"""What goes in comes out, in order, once: see tests/ringtest/model.c.

VHOSTPCI_MODEL_SEEDS says how many seeds there are, VHOSTPCI_MODEL_FIRST the first one,
and VHOSTPCI_MODEL_PACKETS how many packets cross in each direction for each.
"""

import os
from pathlib import Path

import pytest

from tests.ringtest.build import build_model, run

PACKETS = int(os.environ.get("VHOSTPCI_MODEL_PACKETS", "5000"))
SEEDS = int(os.environ.get("VHOSTPCI_MODEL_SEEDS", "100"))
FIRST = int(os.environ.get("VHOSTPCI_MODEL_FIRST", "0"))
LIMIT = 60 + SEEDS * PACKETS / 1000
"""Seconds: a hundred times what it takes on a machine that does nothing else."""


@pytest.mark.timeout(LIMIT + 60)
def test_what_goes_in_comes_out_in_order_and_once(tmp_path: Path) -> None:
    """Each seed has other features, sizes and chains; odd ones have packed rings."""
    model = build_model(tmp_path / "model")
    done = run(model, str(FIRST), str(SEEDS), str(PACKETS), timeout=LIMIT)
    assert (done.returncode, done.stderr) == (0, "")
    packets, lost, stops = map(int, done.stdout.split())
    assert packets == 2 * SEEDS * PACKETS
    # A stop loses the packet that waits for buffers, if one does.
    assert lost <= stops
    assert stops > 0

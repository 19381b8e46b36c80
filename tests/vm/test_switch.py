# SPDX-License-Identifier: Apache-2.0
"""The switch VM of the demo; switch.py has the drawing."""

from pathlib import Path

import pytest

from tests.vm import switch
from tests.vm.data_planes import RING, VHOST_NET
from tests.vm.show import Progress

pytestmark = pytest.mark.vm


@pytest.mark.parametrize("plane", [RING, VHOST_NET])
def test_masters_come_and_go_at_a_switch_vm_and_the_others_lose_nothing(
    logs: Path, plane: str
) -> None:
    report = switch.Report(bind="vfio", data_plane=plane)
    switch.run(report, logs / "switch", Progress())
    assert report.ok, report.text()
    assert report.windows == {"a b c": 6, "a b": 4, "a b d": 6}

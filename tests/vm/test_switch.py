# SPDX-License-Identifier: Apache-2.0
"""The switch VM of the demo; switch.py has the drawing."""

from pathlib import Path

import pytest

from tests.vm import switch
from tests.vm.show import Progress

pytestmark = pytest.mark.vm


def test_masters_come_and_go_at_a_switch_vm_and_the_others_lose_nothing(
    logs: Path,
) -> None:
    report = switch.Report(bind="vfio")
    switch.run(report, logs / "switch", Progress())
    assert report.ok, report.text()
    assert report.windows == {"a b c": 6, "a b": 4, "a b d": 6}

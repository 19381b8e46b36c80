# SPDX-License-Identifier: Apache-2.0
"""Whether the machine is free to measure."""

import os

import pytest

from tests.bench import machine
from tests.bench.machine import LOOK, Load

HZ = os.sysconf("SC_CLK_TCK")
STAT = "cpu  {user} 0 0 {idle} 7 0 0 {steal} 0 0\ncpu0 1 2 3\n"


def stat(*, user: float = 0, steal: float = 0, idle: float = 0) -> str:
    return STAT.format(
        user=round(user * HZ), steal=round(steal * HZ), idle=round(idle * HZ)
    )


def test_idle_time_is_no_work_and_stolen_time_is() -> None:
    assert machine.processor_seconds(stat(idle=100)) == 0
    assert machine.processor_seconds(stat(user=2, steal=1)) == pytest.approx(3)


@pytest.mark.parametrize(("used", "busy"), [(0.0, False), (0.1, False), (1.5, True)])
def test_machine_is_busy_when_others_use_processors(used: float, busy: bool) -> None:
    texts = iter([stat(user=10), stat(user=10 + used * LOOK)])
    load = Load.now(read=lambda: next(texts), sleep=lambda _: None)
    assert load.others == pytest.approx(used, abs=0.03)
    assert load.busy == busy


def test_this_machine_has_a_name_and_a_commit() -> None:
    assert "processors" in machine.name()
    assert machine.commit()

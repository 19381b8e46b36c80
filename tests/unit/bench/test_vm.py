# SPDX-License-Identifier: Apache-2.0
"""The rounds of the part with VMs, without VMs."""

from functools import partial

import pytest

from tests.bench.parts import vm
from tests.bench.parts.vm import Round


def test_every_contender_has_its_turn_in_each_round_and_is_compared() -> None:
    turns: list[str] = []

    def measure(name: str, rate: float) -> Round:
        turns.append(name)
        return Round(ping=1000 / rate, tcp_from=rate, tcp_to=2 * rate, udp=3 * rate)

    rates = {"vfio": 200.0, "kmod": 300.0, "-netdev tap": 400.0, "-netdev socket": 50.0}
    found = vm.measure_rounds(
        3, {name: partial(measure, name, rate) for name, rate in rates.items()}
    )
    assert turns == [*rates, *reversed(rates), *rates]
    assert len(found) == 2 * 2 * 4
    ratios = {figure.name: figure.ratio for figure in found}
    assert ratios["kmod, TCP to the master, beside -netdev tap"] == pytest.approx(0.75)
    assert ratios["vfio, ping, beside -netdev socket"] == pytest.approx(0.25)
    assert {figure.better for figure in found if "ping" in figure.name} == {"lower"}

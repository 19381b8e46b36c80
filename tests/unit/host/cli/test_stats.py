# SPDX-License-Identifier: Apache-2.0
"""`vhostpci-host stats`: what an agent counts, which may be anything."""

import json
from copy import deepcopy
from pathlib import Path
from typing import Any

import pytest

from tests import golden
from tests.fakes.control_daemon import ControlDaemon
from vhostpci_host.cli import stats
from vhostpci_host.cli.main import main
from vhostpci_host.cli.stats import statistics
from vhostpci_host.device.cleared import cleared
from vhostpci_host.errors import HostError

HERE = Path(__file__).parent / "golden"
STATUS: dict[str, Any] = json.loads((HERE / "status.json").read_text())


def grown(by: int) -> dict[str, Any]:
    """Return the status when each count has grown."""
    status = deepcopy(STATUS)
    for ring in status["rings"]:
        for name in stats.NAMES:
            ring["agent"][name] += by
    return status


def test_rx_is_what_the_master_receives() -> None:
    found = statistics(STATUS)
    assert found["statistics"]["rx_packets"] == 912
    assert found["statistics"]["rx_dropped"] == 7
    assert found["statistics"]["tx_bytes"] == 61_000_123_456
    assert found["queue_pairs"] == [{"pair": 0, "statistics": found["statistics"]}]
    assert found["since"] is None


def test_counters_begin_again_when_they_are_cleared() -> None:
    status = grown(3) | {"cleared": cleared(STATUS)}
    found = statistics(status)
    assert set(found["statistics"].values()) == {3}
    assert found["since"] == status["cleared"]["at"]


@pytest.mark.parametrize("other", ["instance", "falls", "rings"])
def test_counters_of_another_agent_are_not_cleared(other: str) -> None:
    base = cleared(grown(5) if other == "falls" else STATUS)
    status = grown(3) | {"cleared": base}
    if other == "instance":
        status["agent"]["instance"] = 99
    elif other == "rings":
        base["rings"] = base["rings"] * 2
    found = statistics(status)
    assert (found["since"], found["statistics"]["rx_packets"]) == (None, 915)


def test_agent_that_says_nonsense_has_counted_nothing() -> None:
    status = deepcopy(STATUS)
    status["rings"][0]["agent"] = None
    assert statistics(status | {"cleared": cleared(status)})["statistics"][
        "rx_packets"
    ] == (0)


def test_status_of_an_earlier_daemon_has_counters() -> None:
    status = deepcopy(STATUS)
    del status["agent"]["instance"], status["agent"]["not_counted"]
    assert statistics(status)["statistics"]["rx_kicks"] == 1_200_345


def test_device_that_failed_has_none() -> None:
    with pytest.raises(HostError, match="web: failed: it broke"):
        statistics({"name": "web", "state": "failed", "reason": "it broke"})


@pytest.mark.parametrize("kind", golden.TERMINALS)
def test_stats(kind: str) -> None:
    status = deepcopy(STATUS)
    status["agent"]["not_counted"] = ["kicks"]
    shown = stats.lines(statistics(status), golden.TERMINALS[kind])
    golden.check(HERE / f"stats-{kind}.txt", shown)


def test_devices_are_shown_and_cleared(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    where = ["--run-dir", str(tmp_path)]
    answers = {"status": STATUS, "clear": None}
    with ControlDaemon(tmp_path / "web.control", answers):
        assert main(["stats", "-j", *where]) == 0
        (found,) = json.loads(capsys.readouterr().out)
        assert found["name"] == "web"
        assert main(["stats", "web", "--clear", *where]) == 0
    assert capsys.readouterr().out == "web: counts from now on\n"
    assert main(["stats", *where]) == 0
    assert capsys.readouterr().out == "no devices\n"

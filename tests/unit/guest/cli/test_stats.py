# SPDX-License-Identifier: Apache-2.0
"""`vhostpci-guest stats`: its counters, from real rings, and what the docs say."""

import json
import re
from dataclasses import asdict, fields, replace
from pathlib import Path
from typing import Any

import pytest

from tests.fakes.pair import HDR, RX, TX, Pair
from vhostpci_guest import status_socket
from vhostpci_guest.cli.main import main
from vhostpci_guest.cli.print_stats import statistics
from vhostpci_guest.dataplane.interface import Stats
from vhostpci_guest.serve.cleared import cleared

Say = pytest.CaptureFixture[str]

DOCUMENT = Path(__file__).parents[4] / "docs/agent.md"
NUMBERS = {
    field.name: 1 << n
    for n, field in enumerate(fields(Stats))
    if field.name != "batches"
}
"""For each count another value, so that a sum tells what it has."""
ALL = replace(
    Stats(**NUMBERS),  # type: ignore[arg-type]
    batches=tuple(1 << n for n in range(40, 51)),
)


def link(*rings: Stats, name: str = "net0", tap: str = "vp0") -> dict[str, Any]:
    """Return the status of a device."""
    entries = [{"ring": i, "stats": asdict(one)} for i, one in enumerate(rings)]
    where = {"device": f"0000:00:{len(name):02}.0", "pid": 77}
    return {**where, "name": name, "tap": tap, "rings": entries}


@pytest.fixture
def two(monkeypatch: pytest.MonkeyPatch) -> None:
    """An agent that serves two devices."""
    links = [link(Stats(packets=5), Stats()), link(Stats(), name="web", tap="vp1")]
    monkeypatch.setattr(status_socket, "ask", lambda: (links, []))


def test_rx_is_what_comes_from_the_master_and_tx_what_goes_to_it() -> None:
    with Pair() as pair:
        pair.tx.send(HDR, b"from the master")
        for _ in range(2):
            pair.rx.post(100)
            pair.tap.send(HDR + b"to it")
        pair.settle()
        rings = [pair.status(index).stats for index in (RX, TX)]
    counters = statistics(link(*rings))["statistics"]
    assert (counters["rx_packets"], counters["rx_bytes"]) == (1, 15)
    assert (counters["tx_packets"], counters["tx_bytes"]) == (2, 10)


def test_device_has_the_totals_of_a_data_plane_that_counts_no_single_ring() -> None:
    lacking = ["kicks", "packets", "octets"]
    totals = {"rx_packets": 70_000, "rx_bytes": 9, "tx_packets": 3, "tx_bytes": 4}
    device = link(Stats(), Stats()) | {"totals": totals, "not_counted": lacking}
    shown = statistics(device)
    assert shown["statistics"]["rx_packets"] == 70_000
    assert shown["not_counted"] == ["kicks"]
    (pair,) = shown["queue_pairs"]
    assert (pair["statistics"]["rx_packets"], pair["not_counted"]) == (0, lacking)


def test_each_count_of_a_ring_is_in_a_counter_of_its_own() -> None:
    """One that no counter has would be counted, and never shown."""
    shown = statistics(link(ALL, ALL))["statistics"]
    assert set(shown.values()) >= {*NUMBERS.values(), *ALL.batches}


def test_lost_packets_are_in_the_sum_of_errors_or_in_that_of_drops() -> None:
    shown = statistics(link(ALL, ALL))["statistics"]
    for way in ("rx", "tx"):
        for total, kind in (("errors", "error"), ("dropped", "drop")):
            parts = [
                v for name, v in shown.items() if name.startswith(f"{way}_{kind}_")
            ]
            assert shown[f"{way}_{total}"] == sum(parts)
    sums = ("rx_errors", "rx_dropped", "tx_errors", "tx_dropped")
    assert sum(shown[one] for one in sums) == ALL.dropped


def test_what_the_taps_queue_has_lost_is_shown() -> None:
    """Nothing is known of it with an earlier agent, or when the TAP has gone."""
    assert statistics(link(ALL, ALL))["statistics"]["tx_tap_dropped"] == 0
    for said, shown in ((7, 7), (None, 0)):
        device = link(ALL, ALL) | {"tap_dropped": said}
        assert statistics(device)["statistics"]["tx_tap_dropped"] == shown


def test_queue_pairs_are_counted_apart_and_together() -> None:
    counted = statistics(link(*(Stats(packets=n) for n in (1, 2, 4, 8))))
    assert counted["statistics"]["rx_packets"] == 10
    assert counted["statistics"]["tx_packets"] == 5
    pairs = [one["statistics"] for one in counted["queue_pairs"]]
    assert [(one["rx_packets"], one["tx_packets"]) for one in pairs] == [(2, 1), (8, 4)]


def test_each_counter_is_explained_in_the_docs_and_no_other() -> None:
    text = DOCUMENT.read_text().split("\n## Counters\n")[1].split("\n## ")[0]
    first = "\n".join(row.split("|")[1] for row in text.split("\n") if row[:3] == "| `")
    told = set(re.findall("`(.*?)`", first))
    told |= {
        f"{way}_{one[2:]}" for one in told if one[:2] == "*_" for way in ("rx", "tx")
    }
    assert {one for one in told if one[0] != "*"} == set(
        statistics(link(ALL, ALL))["statistics"]
    )


def test_stats_of_all_devices_are_printed_without_those_that_are_0(
    two: None, capsys: Say
) -> None:
    assert main(["stats"]) == 0
    out = capsys.readouterr().out
    assert "0000:00:04.0  net0  TAP vp0, pid 77\n" in out
    assert "0000:00:03.0  web  TAP vp1, pid 77\n" in out
    rows = [line.split() for line in out.splitlines()]
    assert ["packets", "0", "5"] in rows
    assert ["dropped", "0", "0"] in rows
    assert "calls" not in out


def test_counters_begin_again_when_they_are_cleared() -> None:
    device = link(Stats(packets=5, kicks=1), Stats(packets=7)) | {"tap_dropped": 3}
    device["cleared"] = cleared(device) | {"at": 5.0}
    device |= link(Stats(packets=8, kicks=1), Stats(packets=7)) | {"tap_dropped": 4}
    counted = statistics(device)
    assert counted["since"] == 5.0
    shown = counted["statistics"]
    assert (shown["tx_packets"], shown["tx_kicks"], shown["rx_packets"]) == (3, 0, 0)
    assert shown["tx_tap_dropped"] == 1
    assert counted["queue_pairs"][0]["statistics"]["tx_packets"] == 3


def test_counters_that_began_again_by_themselves_are_cleared_no_more() -> None:
    device = link(Stats(packets=5, kicks=9))
    device["cleared"] = cleared(device)
    counted = statistics(device | link(Stats(packets=7, kicks=1)))
    assert (counted["since"], counted["statistics"]["tx_packets"]) == (None, 7)


def test_one_device_is_cleared_or_all(
    two: None, monkeypatch: pytest.MonkeyPatch, capsys: Say
) -> None:
    asked = []

    def request(pid: int, question: dict[str, Any]) -> dict[str, Any]:
        asked.append((pid, question["command"], question["device"]))
        return {}

    monkeypatch.setattr(status_socket, "request", request)
    assert main(["stats", "web", "--clear"]) == 0
    assert asked == [(77, "clear", "0000:00:03.0")]
    assert main(["stats", "--clear"]) == 0
    assert len(asked) == 3
    assert "net0: counts from now on" in capsys.readouterr().out


@pytest.mark.parametrize("name", ["web", "vp1", "0000:00:03.0"])
def test_stats_of_one_device_by_each_of_its_names(
    two: None, capsys: Say, name: str
) -> None:
    assert main(["stats", name, "-j"]) == 0
    (only,) = json.loads(capsys.readouterr().out)
    assert only["name"] == "web"
    assert only["statistics"]["tx_packets"] == 0


def test_stats_of_an_unknown_device_are_status_1_and_name_those_served(
    two: None, caplog: pytest.LogCaptureFixture
) -> None:
    assert main(["stats", "db"]) == 1
    assert "no agent serves db; served: net0, web" in caplog.text


def test_stats_of_an_agent_of_an_earlier_version_are_status_1(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    old = link(Stats())
    del old["rings"][0]["stats"]
    monkeypatch.setattr(status_socket, "ask", lambda: ([old], []))
    assert main(["stats"]) == 1
    assert "pid 77 is of an earlier version" in caplog.text


def test_device_without_rings_has_the_counters_that_are_always_there() -> None:
    counted = statistics(link())
    assert set(counted["statistics"].values()) == {0}
    assert counted["queue_pairs"] == []


def test_batches_that_a_ring_has_not_had_are_0() -> None:
    assert Stats().batches == (0,) * len(ALL.batches)

# SPDX-License-Identifier: Apache-2.0
"""`vhostpci-guest metrics`: each counter of `stats`, by the names of the document."""

from dataclasses import asdict, fields
from pathlib import Path
from typing import Any

import pytest
from prometheus_client.parser import text_string_to_metric_families

from vhostpci_guest import status_socket
from vhostpci_guest.cli.main import main
from vhostpci_guest.cli.print_stats import statistics
from vhostpci_guest.dataplane.interface import Stats

DOCUMENT = (Path(__file__).parents[4] / "docs/metrics.md").read_text()
COUNTS = {f.name: 7 for f in fields(Stats) if f.name != "batches"}
CONFINED = {"shared": 80 << 20, "memory": 1 << 30}
STATS = Stats(**COUNTS, batches=(3,) * 11)


def link(**more: Any) -> dict[str, Any]:
    rings = [{"ring": n, "stats": asdict(STATS)} for n in range(2)]
    where = {"device": "0000:00:05.0", "pid": 7, "name": "web", "tap": "vp0"}
    return {**where, "state": "ready", "carrier": True, "rings": rings, **more}


def metrics(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, **more: Any
) -> dict[str, Any]:
    """Return the families that are printed for one device."""
    monkeypatch.setattr(status_socket, "ask", lambda: ([link(**more)], []))
    assert main(["metrics"]) == 0
    text = capsys.readouterr().out
    return {one.name: one for one in text_string_to_metric_families(text)}


def test_each_counter_of_stats_is_there(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    found = metrics(capsys, monkeypatch)
    for name, value in statistics(link())["statistics"].items():
        if "_batches_" in name:
            way, chains = name.split("_batches_")
            samples = found[f"vhostpci_agent_{way}_batches"].samples
            (sample,) = (one for one in samples if one.labels["chains"] == chains)
        else:
            (sample,) = found[f"vhostpci_agent_{name}"].samples
        assert sample.value == value, name
        assert sample.labels["device"] == "web"


def test_gauges_are_those_of_the_document(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    found = metrics(capsys, monkeypatch, confined=CONFINED)
    gauges = {name for name, one in found.items() if one.type == "gauge"}
    rows = [line.split("`")[1] for line in DOCUMENT.splitlines() if "| gauge" in line]
    assert gauges == {name for name in rows if name.startswith("vhostpci_agent_")}


def test_memory_of_a_confined_device_is_there(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    found = metrics(capsys, monkeypatch, confined=CONFINED)
    for name, value in {
        "confined": 1,
        "confined_shared_bytes": 80 << 20,
        "confined_memory_bytes": 1 << 30,
    }.items():
        (sample,) = found[f"vhostpci_agent_{name}"].samples
        assert (sample.labels["device"], sample.value) == ("web", value)
    found = metrics(capsys, monkeypatch, confined=None)
    (sample,) = found["vhostpci_agent_confined"].samples
    assert sample.value == 0
    assert not any("confined_" in name for name in found)


def test_what_is_not_counted_is_left_out(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    found = metrics(capsys, monkeypatch, not_counted=["octets", "drops"])
    assert "vhostpci_agent_rx_packets" in found
    assert not any("bytes" in name for name in found)
    assert not any("rx_drop" in name for name in found)


def test_what_is_counted_for_all_queue_pairs_together_has_no_pair(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    counts = {"rx_packets": 70_000, "rx_bytes": 9, "tx_packets": 3, "tx_bytes": 4}
    lacking = ["packets", "octets"]
    found = metrics(capsys, monkeypatch, not_counted=lacking, totals=counts)
    for name, value in counts.items():
        (sample,) = found[f"vhostpci_agent_{name}"].samples
        assert sample.value == value
        assert "pair" not in sample.labels


def test_agent_that_does_not_answer_is_counted(
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
) -> None:
    monkeypatch.setattr(status_socket, "ask", lambda: ([link()], ["agent 1: hangs"]))
    path = tmp_path / "a.prom"
    assert main(["metrics", "--textfile", str(path)]) == 1
    assert "vhostpci_agent_scrape_errors 1\n" in path.read_text()


def test_file_that_cannot_be_written_is_an_error(
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
) -> None:
    monkeypatch.setattr(status_socket, "ask", lambda: ([], []))
    path = tmp_path / "no" / "a.prom"
    assert main(["metrics", "--textfile", str(path)]) == 1
    assert f"cannot write {path}: No such file or directory" in caplog.text


@pytest.mark.parametrize("words", [["--listen", "9700"], ["--listen", "unix:"]])
def test_wrong_address_is_an_error_of_the_command_line(words: list[str]) -> None:
    assert main(["metrics", *words]) == 2

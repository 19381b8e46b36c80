# SPDX-License-Identifier: Apache-2.0
"""Reports: what is written is read again, and what differs beyond noise is said."""

import json
from dataclasses import replace
from pathlib import Path

import pytest

from tests.bench import compare
from tests.bench.machine import Load
from tests.bench.picture import draw
from tests.bench.report import Report, ReportError, number, ratio, table
from tests.unit.bench.test_figures import FIGURE

REPORT = Report("a machine", "6.12", "abc", Load(0.5, 0.1), (FIGURE,))
SIX_KEYS = {"machine", "load", "busy", "kernel", "commit", "figures"}


def with_ours(*runs: float) -> Report:
    return replace(REPORT, figures=(replace(FIGURE, ours_runs=runs),))


def test_report_is_read_as_it_was_written(tmp_path: Path) -> None:
    REPORT.write(tmp_path / "a.json")
    assert Report.read(tmp_path / "a.json") == REPORT
    assert [path.name for path in tmp_path.iterdir()] == ["a.json"]


def test_json_has_the_names_that_others_read(tmp_path: Path) -> None:
    REPORT.write(tmp_path / "a.json")
    data = json.loads((tmp_path / "a.json").read_text())
    assert set(data) == SIX_KEYS
    figure = data["figures"][0]
    assert figure["ratio"] == pytest.approx(figure["ours"] / figure["peer"])
    assert figure["runs"] == 5
    names = ("part", "name", "unit", "peer_name", "better")
    assert [figure[name] for name in names] == [
        *("ring", "tx 64", "ns/packet", "DPDK", "lower")
    ]


@pytest.mark.parametrize("text", ["", "[]", "{}", '{"load": 1}'])
def test_file_that_is_no_report_is_named(tmp_path: Path, text: str) -> None:
    (tmp_path / "a.json").write_text(text)
    with pytest.raises(ReportError, match=r"a\.json is not a report"):
        Report.read(tmp_path / "a.json")


def test_highest_load_is_the_reports() -> None:
    report = Report.here([FIGURE], [Load(9, 0.0), Load(1, 1.5), Load(2, 0.1)])
    assert report.load == Load(1, 1.5)
    assert report.load.busy


def test_table_has_a_line_for_each_figure_and_marks_where_the_peer_is_ahead() -> None:
    behind = replace(FIGURE, name="rx 64", better="higher")
    first, second = table([FIGURE, behind]).splitlines()[1:]
    assert first.split()[:6] == ["tx", "64", "ns/packet", "85.0", "100", "0.85"]
    assert "*" not in first
    assert "*" in second


def test_time_of_a_packet_is_also_shown_as_million_packets_a_second() -> None:
    megabits = replace(FIGURE, unit="Mbit/s")
    heading, first, second = table([FIGURE, megabits]).splitlines()
    assert heading.endswith("Mpps")
    assert first.endswith(" 11.8")
    assert not second.endswith(" 11.8")


def test_numbers_have_three_digits() -> None:
    shown = [number(value) for value in (0.1234, 1.234, 12.34, 123.4, 12345.6)]
    assert shown == ["0.123", "1.23", "12.3", "123", "12,346"]
    assert [ratio(0.856), ratio(0.00321)] == ["0.86", "0.0032"]


def test_a_change_beyond_noise_is_said_with_its_direction() -> None:
    before, after = with_ours(80, 81, 82, 81, 80), with_ours(50, 51, 52, 51, 50)
    assert "1 of 1 figures changed beyond noise." in compare.text(before, after)
    assert "better" in compare.text(before, after)
    assert "worse" in compare.text(after, before)


def test_noise_is_no_change() -> None:
    before, after = with_ours(80, 120, 90, 110, 100), with_ours(85, 115, 99, 120, 75)
    assert "0 of 1 figures changed" in compare.text(before, after)


def test_a_sure_but_small_change_is_none() -> None:
    before, after = with_ours(*[100.0] * 5), with_ours(*[102.0] * 5)
    same = replace(FIGURE, peer_runs=(100.0,) * 5)
    (old,), (new,) = before.figures, after.figures
    change = compare.Change(
        replace(old, peer_runs=same.peer_runs), replace(new, peer_runs=same.peer_runs)
    )
    assert change.limits() == pytest.approx((1.02, 1.02))
    assert not change.beyond_noise


def test_figures_of_one_report_only_and_other_machines_are_named() -> None:
    other = replace(
        REPORT, kernel="7.0", figures=(FIGURE, replace(FIGURE, name="rx 64"))
    )
    text = compare.text(REPORT, other)
    assert "Only in the second report: ring: rx 64." in text
    assert "differ" in text


def test_another_peer_makes_another_figure() -> None:
    other = replace(REPORT, figures=(replace(FIGURE, peer_name="DPDK 2"),))
    assert compare.changes(REPORT, other) == []


def test_a_busy_machine_is_said() -> None:
    busy = replace(REPORT, load=Load(3, 1.5))
    assert "too busy" in compare.text(REPORT, busy)
    assert "too busy" not in compare.text(REPORT, REPORT)


def test_picture_is_a_small_png_and_the_same_each_time(tmp_path: Path) -> None:
    behind = replace(FIGURE, name="rx 64", better="higher")
    for name in ("a.png", "b.png"):
        draw([FIGURE, behind], "ring", tmp_path / name)
    data = (tmp_path / "a.png").read_bytes()
    assert data.startswith(b"\x89PNG")
    assert len(data) < 40_000
    assert data == (tmp_path / "b.png").read_bytes()

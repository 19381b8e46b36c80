# SPDX-License-Identifier: Apache-2.0
"""The parts of the benchmark, without running them, and the command line."""

from pathlib import Path

import pytest

from tests.bench import __main__ as command
from tests.bench.figures import Figure
from tests.bench.machine import Load
from tests.bench.parts import PARTS, bulk, ring
from tests.bench.plan import CannotMeasure, Part, Plan
from tests.bench.report import Report
from tests.unit.bench.test_figures import FIGURE

OUTPUT = """\
hz 2000000000
version DPDK 22.11.11
line 100 200 4000
rx 64 ours 6400 6400 6400
rx 64 DPDK 3200 3200 3200
rx 64 DPDK 3200 3200 3200
rx 64 ours 12800 12800 12800
"""


def cannot(_: Plan) -> list[Figure]:
    raise CannotMeasure("gcc is not installed")


def fails(_: Plan) -> list[Figure]:
    raise AssertionError("the daemon serves: not within 60 s")


@pytest.fixture(autouse=True)
def parts(monkeypatch: pytest.MonkeyPatch) -> None:
    """Parts that take no time, on a machine whose load is known."""
    monkeypatch.setitem(PARTS, "works", Part("works", "x", lambda _: [FIGURE]))
    monkeypatch.setitem(PARTS, "lacks", Part("lacks", "y", cannot))
    monkeypatch.setitem(PARTS, "fails", Part("fails", "z", fails))
    monkeypatch.setattr(Load, "now", lambda: Load(1, 1.5))


def test_ticks_of_bursts_become_ns_a_packet_for_each_run() -> None:
    output = ring.parse(OUTPUT)
    assert (output.version, output.line) == ("DPDK 22.11.11", 100)
    (figure,) = ring.figures("split", output)
    assert figure.ours_runs == (100, 200)
    assert figure.peer_runs == (50, 50)
    assert figure.name == "split, rx 64"


def test_each_path_is_another_one_of_the_driver() -> None:
    assert len(set(ring.PATHS.values())) == len(ring.PATHS)
    for path, settings in ring.PATHS.items():
        assert ("packed_vq=1" in settings) == path.startswith("packed")
        mergeable = "mergeable" in path and "non-mergeable" not in path
        assert ("mrg_rxbuf=1" in settings) == mergeable


def test_large_packets_are_counted_in_bits_and_small_ones_in_time() -> None:
    bulk_figure = bulk.Case("tx", 65_000, 65_536).figure([8000.0], [6500.0])
    assert (bulk_figure.unit, bulk_figure.better) == ("Gbit/s", "higher")
    assert (bulk_figure.ours, bulk_figure.peer) == (65, 80)
    small = bulk.Case("rx", 60, 1_536).figure([900.0], [800.0])
    assert (small.better, small.ours, small.peer) == ("lower", 900, 800)


def test_quick_is_shorter_but_never_less_than_five_runs() -> None:
    assert 5 <= Plan(quick=True).runs < Plan().runs


def test_report_and_picture_are_written(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    report = tmp_path / "a.json"
    argv = ["works", "--json", str(report), "--picture", str(tmp_path)]
    assert command.main(argv) == 0
    assert Report.read(report).figures == (FIGURE,)
    assert (tmp_path / "bench-works.png").exists()
    assert "too busy to measure well" in capsys.readouterr().out


def test_part_that_cannot_run_is_said_and_the_others_go_on(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    report = tmp_path / "a.json"
    assert command.main(["lacks", "works", "--json", str(report)]) == 1
    assert "lacks: cannot measure: gcc is not installed" in capsys.readouterr().err
    assert Report.read(report).figures == (FIGURE,)


def test_part_that_fails_is_said_with_its_traceback_and_the_others_go_on(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    report = tmp_path / "a.json"
    assert command.main(["fails", "works", "--json", str(report)]) == 1
    said = capsys.readouterr()
    assert "fails: failed, see above" in said.err
    assert "the daemon serves: not within 60 s" in said.err
    assert "works took" in said.out
    assert Report.read(report).figures == (FIGURE,)


@pytest.mark.parametrize(
    ("argv", "says"),
    [(["nothing"], "no such part: nothing"), (["--json", "/none/a"], "/none is not a")],
)
def test_wrong_command_line_exits_with_2(
    argv: list[str], says: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as end:
        command.main(argv)
    assert end.value.code == 2
    assert says in capsys.readouterr().err


def test_compare_prints_what_changed(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    report = str(tmp_path / "a.json")
    command.main(["works", "--json", report])
    assert command.main(["--compare", report, report]) == 0
    assert "0 of 1 figures changed" in capsys.readouterr().out


def test_compare_names_a_file_that_cannot_be_read(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert command.main(["--compare", str(tmp_path / "x"), str(tmp_path / "y")]) == 1
    assert str(tmp_path / "x") in capsys.readouterr().err

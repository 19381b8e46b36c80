# SPDX-License-Identifier: Apache-2.0
"""A driver thread and a device thread race over one ring: see tests/ringtest/race.c."""

from pathlib import Path

import pytest

from tests.ringtest.build import PACKED, RING, THREAD, build_race, run

SECONDS = "0.5"

cases = pytest.mark.parametrize(
    ("mode", "start"),
    [("flags", "0"), ("flags", "65534"), ("event_idx", "0"), ("event_idx", "65534")],
)


FORMATS: dict[str, tuple[str, ...]] = {"split": (), "packed": (PACKED,)}
formats = pytest.mark.parametrize("packed", FORMATS.values(), ids=FORMATS)


@pytest.fixture(scope="module", params=FORMATS)
def race(
    tmp_path_factory: pytest.TempPathFactory, request: pytest.FixtureRequest
) -> Path:
    program = tmp_path_factory.mktemp("race") / "race"
    return build_race(program, *FORMATS[request.param])


@pytest.fixture(scope="module", params=FORMATS)
def race_under_tsan(
    tmp_path_factory: pytest.TempPathFactory, request: pytest.FixtureRequest
) -> Path:
    program = tmp_path_factory.mktemp("race") / "race"
    return build_race(program, *THREAD, *FORMATS[request.param])


@cases
def test_no_wake_up_is_lost_between_two_threads(
    race: Path, mode: str, start: str
) -> None:
    done = run(race, mode, start, SECONDS)
    assert (done.returncode, done.stderr) == (0, "")
    assert int(done.stdout) > 0


@cases
def test_thread_sanitizer_finds_no_race_between_two_threads(
    race_under_tsan: Path, mode: str, start: str
) -> None:
    done = run(race_under_tsan, mode, start, SECONDS)
    assert (done.returncode, done.stderr) == (0, "")
    assert int(done.stdout) > 0


@formats
@pytest.mark.parametrize(
    ("order", "racing"),
    [
        ("__ATOMIC_ACQUIRE", "vq_next"),  # the device does not wait for the chain
        ("__ATOMIC_RELEASE", "driver_collect"),  # nor the driver for the element
    ],
)
def test_thread_sanitizer_reports_a_planted_race(
    tmp_path: Path, order: str, racing: str, packed: tuple[str, ...]
) -> None:
    """The tests above could not fail if this one did not find the report."""
    text = (RING / "barrier.h").read_text()
    assert text.count(order) == 1
    planted = tmp_path / "barrier.h"
    planted.write_text(text.replace(order, "__ATOMIC_RELAXED"))
    program = build_race(tmp_path / "race", *THREAD, f"-include{planted}", *packed)
    done = run(program, "event_idx", "0", SECONDS)
    assert done.returncode == 66, done.stderr
    assert "ThreadSanitizer: data race" in done.stderr
    assert racing in done.stderr

# SPDX-License-Identifier: Apache-2.0
"""What the demo of a confined device reports, and which words exclude each other."""

import sys
from dataclasses import asdict

import pytest

from tests.vm import demo
from tests.vm.demo_confined import SHARED, Confined, Report, found_text
from tests.vm.scene import PairScene
from tests.vm.traffic import Ping


def report(found: int | None, ordinary: int | None) -> Report:
    results = Confined(secrets_found=found, secrets_found_ordinary=ordinary)
    done = Report("vfio", qemu_version="7.2", confined=results)
    done.ping, done.tcp_up_mbps, done.tcp_down_mbps = Ping(20, 20, 1.0), 5.0, 5.0
    done.finish(1.0)
    return done


@pytest.mark.parametrize(
    ("found", "ordinary", "ok"),
    [
        (0, 4096, True),
        (1, 4096, False),
        (0, 0, False),
        (0, None, False),
        (None, 4096, False),
    ],
)
def test_demo_is_well_if_only_the_ordinary_window_has_the_secret(
    found: int | None, ordinary: int | None, ok: bool
) -> None:
    assert report(found, ordinary).ok is ok


def test_json_and_text_have_the_numbers() -> None:
    done = report(0, 4096)
    assert asdict(done)["confined"] == {
        "shared_mib": 80,
        "secrets_found": 0,
        "secrets_found_ordinary": 4096,
    }
    assert "nothing found" in done.text()
    assert "found 4,096 pages" in done.text()
    assert found_text(None) == "-"


def test_drawing_has_what_is_shared() -> None:
    scene = PairScene(facts={"bind": "vfio", "data_plane": "ring", "shared": SHARED})
    assert "─ 80 of 1676 MiB ─" in scene.plain()
    assert "from memory" not in scene.plain()


@pytest.mark.parametrize(
    "words", ["--switch", "--data-plane vhost-net", "--data-plane vhost-user"]
)
def test_confined_excludes(words: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "argv", ["demo", "--confined", *words.split()])
    with pytest.raises(SystemExit) as ended:
        demo.main()
    assert ended.value.code == 2

# SPDX-License-Identifier: Apache-2.0
"""What the demos show: the drawing that fills in, and the steps."""

import io
import json
import socket
import threading
from pathlib import Path
from xml.etree import ElementTree

import pytest
from rich.console import Console

from tests.vm import packets
from tests.vm.scene import (
    WIDTH,
    Flow,
    PairScene,
    Scene,
    State,
    SwitchScene,
    to_ascii,
)
from tests.vm.stage import Stage

FACTS = {"bind": "vfio", "data_plane": "ring"}

PAIR = """\
   master VM                hypervisor              slave VM
  ╭───────────────────╮    ╭──────────────────╮    ╭──────────────────────╮
  │ Linux, as it is   │    │ vhostpci-host:   │    │ vhostpci-guest       │
  │ virtio-net eth0   │╌╌╌╌│ moves no packets │╌╌╌╌│ vfio, ring           │
  │ 10.77.0.1         │    │                  │    │ TAP vp0, 10.77.0.2   │
  ╰───────────────────╯    ╰──────────────────╯    ╰──────────────────────╯
            │                                                 │
            ╰───────────── from memory to memory ─────────────╯
              ► 1,200 packets  ▄█
              ◄"""

SWITCH = """\
  master VMs          vhostpci-host               switch VM
                                                  TAPs, vfio, ring
  a  virtio-net ── 1,200 packets  ▄█ ───────────── TAP a ─┤ bridge br0
  c  killed; the switch's card is unplugged
  d  virtio-net ──  ────────────────────────────── TAP d ─┤"""


def flow() -> Flow:
    """Nothing in the first second, then 400 packets a second, then 800."""
    flow = Flow()
    for now, count in enumerate((0, 0, 400, 1200)):
        flow.note(float(now), count)
    return flow


def pair_scene() -> PairScene:
    return PairScene(flows={"up": flow()}, facts=FACTS)


def switch_scene() -> SwitchScene:
    states = {"a": State.THERE, "c": State.GONE, "d": State.COMING}
    return SwitchScene(states=states, flows={"a": flow()}, facts=FACTS)


@pytest.mark.parametrize(
    ("scene", "text"), [(pair_scene(), PAIR), (switch_scene(), SWITCH)]
)
def test_drawing_shows_parts_and_packets(scene: Scene, text: str) -> None:
    assert scene.plain() == text
    assert max(map(len, text.splitlines())) <= WIDTH


def test_log_without_utf_8_gets_a_drawing_in_ascii() -> None:
    assert to_ascii(pair_scene().plain()).isascii()
    assert to_ascii(switch_scene().plain()).isascii()


def test_count_that_falls_draws_no_packet() -> None:
    flow = Flow()
    for now, count in enumerate((100, 200, 0, 1)):
        flow.note(float(now), count)
    assert flow.text() == "1 packets █ ▁"


def test_box_has_the_style_of_its_part() -> None:
    scene = pair_scene()
    scene.states["master"] = State.THERE
    top = [style for text, style in scene.lines()[1] if "╭" in text]
    assert top == [State.THERE, State.ABSENT, State.ABSENT]


def shown(*, terminal: bool, width: int = 80) -> str:
    """Return what a stage prints that has one step."""
    output = io.StringIO()
    console = Console(file=output, force_terminal=terminal, width=width, height=30)
    stage = Stage(pair_scene(), console)
    with stage:
        stage("booting both VMs", "nothing is patched")
    return output.getvalue()


def test_terminal_shows_the_drawing_below_the_steps() -> None:
    text = shown(terminal=True)
    assert "booting both VMs" in text
    assert text.rindex("from memory to memory") > text.rindex("nothing is patched")


@pytest.mark.parametrize(("terminal", "width"), [(False, 80), (True, 40)])
def test_log_and_narrow_terminal_show_the_steps_alone(
    terminal: bool, width: int
) -> None:
    text = shown(terminal=terminal, width=width)
    assert "booting both VMs" in text
    assert "nothing is patched" in text
    assert "from memory" not in text


def test_log_has_the_packets_of_the_last_step() -> None:
    stage = Stage(PairScene(facts=FACTS), Console(file=io.StringIO()))
    stage.follow(lambda: {"up": 21})
    stage("shutting down")
    assert "21 packets" in stage.drawing()


def test_daemon_that_does_not_answer_leaves_the_counts_as_they_are() -> None:
    def count() -> dict[str, int]:
        raise ConnectionRefusedError

    output = io.StringIO()
    stage = Stage(pair_scene(), Console(file=output, force_terminal=True, width=80))
    with stage:
        stage.follow(count)
        stage("ping")
    assert "1,200 packets" in output.getvalue()


def test_picture_has_all_that_was_shown_and_downloads_nothing() -> None:
    stage = Stage(pair_scene(), Console(file=io.StringIO()))
    stage("booting both VMs", "nothing is patched")
    picture = stage.picture("all came back")
    text = "".join(ElementTree.fromstring(picture).itertext()).replace("\xa0", " ")
    for part in ("booting both VMs", "nothing is patched", "1,200 packets", "all came"):
        assert part in text
    assert "url(http" not in picture


def test_packets_are_those_that_the_agent_has_counted(tmp_path: Path) -> None:
    rings = [{"agent": {"packets": 7}}, {"agent": {"packets": 5}}, {"agent": None}]
    answer = {"ok": True, "result": {"rings": rings}}
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(tmp_path / "net0.control"))
        listener.listen()

        def serve() -> None:
            with listener.accept()[0] as connection:
                assert json.loads(connection.recv(100)) == {"command": "status"}
                connection.sendall(json.dumps(answer).encode() + b"\n")

        thread = threading.Thread(target=serve)
        thread.start()
        assert packets.crossed(tmp_path / "net0.control") == (5, 7)
        thread.join()

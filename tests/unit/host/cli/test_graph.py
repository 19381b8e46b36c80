# SPDX-License-Identifier: Apache-2.0
"""The picture of VMs and devices, in each of its forms."""

import json
import re
from copy import deepcopy
from pathlib import Path
from typing import Any
from xml.etree import ElementTree as ET

import pydot
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests import golden
from tests.fakes.control_daemon import ControlDaemon
from vhostpci_host.cli.graph import dot, svg, text
from vhostpci_host.cli.graph.topology import links, vms
from vhostpci_host.cli.main import main
from vhostpci_shared.terminal import Terminal

HERE = Path(__file__).parent / "golden"
WEB: dict[str, Any] = json.loads((HERE / "status.json").read_text())
CONFINED = {"shared": 80 << 20, "memory": 4 << 30, "pool": 64 << 20}
FAILED = {"name": "mail", "mode": "arena", "state": "failed", "reason": "no space left"}


UPLINK = "uplink (confined)"


def fleet() -> list[dict[str, Any]]:
    """Return three devices with one slave, of which one is master, too; and others."""
    db, spare, up = deepcopy(WEB), deepcopy(WEB), deepcopy(WEB)
    db |= {"name": "db", "state": "no agent"}
    db["master"] = {**db["master"], "pid": 3571, "name": 'db "main" <1> & \\'}
    db["agent"]["present"] = False
    spare |= {"name": "spare", "state": "no master", "master": None, "slave": None}
    spare["agent"]["present"] = False
    up |= {"name": "uplink", "rates": None, "confined": CONFINED}
    up["master"] = {**WEB["slave"], "mac": None}
    up["slave"] = {"pid": 99, "name": None}
    return [WEB, spare, db, up, FAILED]


@pytest.mark.parametrize("kind", golden.TERMINALS)
def test_text(kind: str) -> None:
    lines = text.lines(links(fleet()), golden.TERMINALS[kind])
    golden.check(HERE / f"graph-{kind}.txt", lines)


def test_dot() -> None:
    golden.check(HERE / "graph.dot", dot.lines(links(fleet())))


def test_svg() -> None:
    golden.check(HERE / "graph.svg", svg.lines(links(fleet())))


def test_vm_with_several_devices_is_drawn_once() -> None:
    found = links(fleet())
    assert [one.name for one in found] == ["web", "db", "spare", UPLINK, "mail"]
    assert [vm.pid for vm in vms(found)].count(17605) == 1


def test_text_without_unicode_is_ascii() -> None:
    lines = text.lines(links([WEB]), Terminal(60, unicode=False))
    assert "\n".join(lines).isascii()


NAMES = st.text(max_size=60)


@given(NAMES, NAMES, st.text(max_size=90), st.integers(20, 120))
def test_any_names_can_be_drawn(vm: str, device: str, state: str, width: int) -> None:
    status = deepcopy(WEB) | {"name": device, "state": state}
    status["master"]["name"] = vm
    found = links([status])
    ET.fromstring("\n".join(svg.lines(found)))
    picture = list(dot.lines(found))
    # Each line of DOT is whole: no name ends a string, or the picture.
    assert all(len(re.sub(r"\\.", "", line).split('"')) % 2 for line in picture)
    assert max(map(len, text.lines(found, Terminal(width)))) <= max(width, 20 + 20)


# pyparsing has new names for what pydot still calls by the old ones.
@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_another_parser_of_dot_takes_it() -> None:
    graphs = pydot.graph_from_dot_data("\n".join(dot.lines(links(fleet()))))
    assert graphs is not None
    (graph,) = graphs
    assert "uplink" in graph.to_string()
    assert len(graph.get_edges()) > 1


@pytest.mark.parametrize(
    ("form", "begin"), [("text", "a slave"), ("dot", "digraph"), ("svg", "<svg")]
)
def test_picture_is_printed(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], form: str, begin: str
) -> None:
    status = deepcopy(WEB)
    status["slave"]["pid"] = 0
    with ControlDaemon(tmp_path / "web.control", {"status": status}):
        assert main(["graph", "--format", form, "--run-dir", str(tmp_path)]) == 0
    assert capsys.readouterr().out.startswith(begin)


@pytest.mark.parametrize("form", ["text", "dot", "svg"])
def test_picture_without_devices_is_one(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], form: str
) -> None:
    assert main(["graph", "--format", form, "--run-dir", str(tmp_path)]) == 0
    assert capsys.readouterr().out

# SPDX-License-Identifier: Apache-2.0
"""`vhostpci-guest top` without a terminal: blocks of lines, as `top -b`."""

from typing import Any

import pytest

from tests.unit.guest.cli.test_main import LINK
from vhostpci_guest import status_socket
from vhostpci_guest.cli.main import main

Say = pytest.CaptureFixture[str]


def test_looks_are_printed_one_below_the_other(
    monkeypatch: pytest.MonkeyPatch, capsys: Say
) -> None:
    packets = iter(range(0, 9000, 1000))

    def ask() -> Any:
        ring = {**LINK["rings"][0], "packets": next(packets), "size": 256, "fill": 9}
        return [{**LINK, "rings": [ring], "not_counted": ["kicks"]}], []

    monkeypatch.setattr(status_socket, "ask", ask)
    assert main(["top", "net0", "-n", "2", "-d", "0.2"]) == 0
    first, second = capsys.readouterr().out.split("\n\n")
    for block in first, second:
        head, device, _, ring = block.strip().splitlines()
        assert head.startswith("vhostpci-guest: 1 device, over 0.")
        assert device == "net0  failed  vp0"
        name, rate, *_, fill, drops, kicks, calls = ring.split()
        assert (name, fill, drops, kicks, calls) == ("tx0", "9", "0", "-", "0")
        assert rate != "0"


def test_top_without_an_agent_is_status_1(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(status_socket, "ask", lambda: ([], []))
    assert main(["top", "--once"]) == 1
    assert "no agent serves a device" in caplog.text

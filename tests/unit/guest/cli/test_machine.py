# SPDX-License-Identifier: Apache-2.0
"""Which machines the agent runs on."""

import os
import sys
from types import SimpleNamespace

import pytest

from vhostpci_guest.cli.machine import check_machine
from vhostpci_guest.cli.main import main
from vhostpci_guest.errors import Unusable


def be(machine: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Have `uname -m` print `machine`."""
    monkeypatch.setattr(os, "uname", lambda: SimpleNamespace(machine=machine))


def test_64_bit_process_on_x86_64_may_run(monkeypatch: pytest.MonkeyPatch) -> None:
    be("x86_64", monkeypatch)
    check_machine()


@pytest.mark.parametrize("machine", ["aarch64", "riscv64", "s390x", "i686"])
def test_another_machine_is_refused(
    machine: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    be(machine, monkeypatch)
    with pytest.raises(Unusable, match=f"this machine is {machine}; .* x86-64 only"):
        check_machine()


def test_32_bit_process_on_x86_64_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    be("x86_64", monkeypatch)
    monkeypatch.setattr(sys, "maxsize", 2**31 - 1)
    with pytest.raises(Unusable, match="32-bit"):
        check_machine()


def test_run_on_another_machine_is_status_1_before_anything_is_done(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    be("aarch64", monkeypatch)
    # The import of the ring driver fails, as where it was not built.
    monkeypatch.setitem(sys.modules, "vhostpci_guest.cli.run", None)
    assert main(["run"]) == 1
    assert "this machine is aarch64" in caplog.text

# SPDX-License-Identifier: Apache-2.0
"""Which barriers a machine has: those in C, none because it needs none, or an error."""

import os
import sys
from collections.abc import Iterator
from types import SimpleNamespace

import pytest

from vhostpci_shared import barriers


@pytest.fixture(autouse=True)
def nothing_kept() -> Iterator[None]:
    """Ask again in each test, and after it."""
    barriers.installed_barriers.cache_clear()
    yield
    barriers.installed_barriers.cache_clear()


def without_c(machine: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Be a machine with this processor on which no C was built."""
    monkeypatch.setitem(sys.modules, "vhostpci_shared._memory", None)
    monkeypatch.setattr(os, "uname", lambda: SimpleNamespace(machine=machine))


def call_all(found: barriers.Barriers) -> None:
    found.barrier_acquire()
    found.barrier_release()
    found.barrier_full()


def test_barriers_are_those_in_c_on_every_machine(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(os, "uname", lambda: SimpleNamespace(machine="aarch64"))
    found = barriers.installed_barriers()
    call_all(found)
    assert type(found).__module__ == "_cffi_backend", "run tools/build_ring.py"


def test_x86_64_needs_no_c(monkeypatch: pytest.MonkeyPatch) -> None:
    without_c("x86_64", monkeypatch)
    call_all(barriers.installed_barriers())


@pytest.mark.parametrize("machine", ["aarch64", "riscv64", "i686"])
def test_another_machine_without_c_is_refused(
    machine: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    without_c(machine, monkeypatch)
    with pytest.raises(barriers.NoBarriers, match=f"this machine is {machine}, .*gcc"):
        barriers.installed_barriers()

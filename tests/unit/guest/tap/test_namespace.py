# SPDX-License-Identifier: Apache-2.0
"""Network namespaces: which one is ours, and what happens in another one."""

import os
from pathlib import Path

import pytest

from vhostpci_guest.tap import namespace


def test_action_runs_in_the_other_namespace_and_the_test_stays(elsewhere: int) -> None:
    """Which namespace is ours is asked of the thread: the process has others."""
    assert not namespace.is_ours(elsewhere)
    assert namespace.run_in(elsewhere, lambda: namespace.is_ours(elsewhere))
    assert namespace.run_in(elsewhere, namespace.label) != namespace.label()
    assert not namespace.is_ours(elsewhere)


def test_error_in_the_other_namespace_is_raised_here(elsewhere: int) -> None:
    with pytest.raises(ZeroDivisionError):
        namespace.run_in(elsewhere, lambda: 1 // 0)


def test_action_does_not_run_where_we_cannot_go() -> None:
    with (
        open(os.devnull, "rb") as no_namespace,
        pytest.raises(OSError, match="setns: Invalid argument"),
    ):
        namespace.run_in(no_namespace.fileno(), lambda: pytest.fail("it runs"))


@pytest.mark.parametrize("first", [True, False])
def test_only_the_first_namespace_of_a_machine_has_no_label(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, *, first: bool
) -> None:
    """Its number may change with the kernel, and MACs depend on the label."""
    setting = tmp_path / "netdev_max_backlog"
    if first:
        setting.touch()
    monkeypatch.setattr(namespace, "_ONLY_IN_THE_FIRST", setting)
    number = str(os.stat("/proc/thread-self/ns/net").st_ino)
    assert namespace.label() == ("" if first else number)

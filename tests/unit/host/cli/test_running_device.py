# SPDX-License-Identifier: Apache-2.0
"""`qemu-args` for a device that a daemon serves: its options, and those given."""

import json
from pathlib import Path
from typing import Any

import pytest

from tests.fakes.control_daemon import ControlDaemon
from vhostpci_host.cli.main import main
from vhostpci_host.cli.vm_arguments import options_of
from vhostpci_host.config.options import device


def running(directory: Path, mode: str = "arena", **more: Any) -> dict[str, Any]:
    """Return the part of a status that `qemu-args` reads."""
    arena = {"size": 64 << 20, "path": str(directory / "memory" / "web")}
    return {
        "name": "web",
        "state": "running",
        "mode": mode,
        "memory": arena if mode == "arena" else {"size": 0, "path": None},
        "queue_pairs": 4,
        "sockets": {"vhost_user": str(directory / "elsewhere.sock")},
        "plugging": None,
        **more,
    }


def printed(
    capsys: pytest.CaptureFixture[str],
    directory: Path,
    status: dict[str, Any],
    *words: str,
) -> str:
    """Return the arguments for `web`, which a daemon serves with this status."""
    argv = ["qemu-args", "web", "--run-dir", str(directory), "--role", *words]
    with ControlDaemon(directory / "web.control", {"status": status}):
        assert main([*argv, "--json"]) == 0
    return " ".join(json.loads(capsys.readouterr().out))


@pytest.mark.parametrize(
    "mode", [[], ["--memory", "64M"]], ids=["by its name", "with --memory"]
)
def test_master_has_the_queue_pairs_and_socket_of_the_device_that_runs(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, mode: list[str]
) -> None:
    text = printed(capsys, tmp_path, running(tmp_path), "master", *mode)
    assert f"path={tmp_path}/elsewhere.sock" in text
    assert f"mem-path={tmp_path}/memory/web" in text
    assert "size=64M" in text
    assert "queues=4" in text


def test_master_listens_for_the_daemon_that_connects(
    capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    status = running(tmp_path, connects=True)
    text = printed(capsys, tmp_path, status, "master")
    assert f"path={tmp_path}/elsewhere.sock,server=on" in text


def test_confined_device_that_runs_has_all_of_its_masters_memory(
    tmp_path: Path,
) -> None:
    confined = {"shared": 80 << 20, "memory": 1 << 30, "pool": 64 << 20}
    status = running(tmp_path, vectors=3, queue_pairs=1, confined=confined)
    config = device("web", options_of(status))
    assert (config.memory, config.confined) == (1 << 30, 64 << 20)


def test_memory_of_an_attach_device_that_runs_is_the_masters_own(
    capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    status = running(tmp_path, "attach")
    text = printed(capsys, tmp_path, status, "master", "--memory", "512M")
    assert "memory-backend-memfd" in text
    assert "512M" in text
    assert "mem-path" not in text


@pytest.mark.parametrize(
    ("status", "in_order"),
    [
        ({}, True),  # an earlier daemon's
        ({"features": {"option": None}}, True),
        ({"features": {"option": ["NET_F_MQ", "F_VERSION_1"]}}, False),
    ],
)
def test_card_has_no_feature_that_the_device_that_runs_withholds(
    capsys: pytest.CaptureFixture[str],
    tmp_path: Path,
    status: dict[str, Any],
    in_order: bool,
) -> None:
    qemu = tmp_path / "qemu"
    qemu.write_text("#!/bin/sh\necho QEMU emulator version 10.0.0\n")
    qemu.chmod(0o755)
    words = ("master", "--qemu", str(qemu))
    text = printed(capsys, tmp_path, running(tmp_path, **status), *words)
    assert ("in_order=on" in text) is in_order


def test_packed_rings_of_a_device_without_them_are_refused(
    capsys: pytest.CaptureFixture[str],
) -> None:
    words = ["--memory", "64M", "--role", "master", "--packed", "--features", "dpdk"]
    assert main(["qemu-args", "web", *words]) == 1
    assert "features are without F_RING_PACKED" in capsys.readouterr().err


def test_option_replaces_that_of_the_device_that_runs(
    capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    words = ("master", "--queue-pairs", "2", "--memory", "128M")
    text = printed(capsys, tmp_path, running(tmp_path), *words)
    assert "queues=2" in text
    assert "size=128M" in text


def test_mode_that_is_given_replaces_that_of_the_device_that_runs(
    capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    words = ("master", "--mode", "attach", "--memory", "256M")
    text = printed(capsys, tmp_path, running(tmp_path), *words)
    assert "memory-backend-memfd" in text


def test_slave_that_is_given_replaces_the_other_kind_of_the_device_that_runs(
    capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    status = running(tmp_path, plugging={"slave": "router"})
    words = ("slave", "--slave-qmp", "/run/qmp")
    assert "/run/qmp" in printed(capsys, tmp_path, status, *words)


def test_daemon_without_the_device_is_named_when_the_options_alone_are_used(
    capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    argv = ["qemu-args", "web", "--run-dir", str(tmp_path), "--role", "master"]
    with ControlDaemon(tmp_path / "web.control", {}):
        assert main([*argv, "--memory", "64M"]) == 0
    assert "# by the options alone: no status here" in capsys.readouterr().err

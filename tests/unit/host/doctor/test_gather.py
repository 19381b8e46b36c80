# SPDX-License-Identifier: Apache-2.0
"""What `vhostpci-host doctor` asks, and of whom."""

import json
import os
import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from tests.fakes.control_daemon import ControlDaemon
from tests.fakes.qmp_server import GREETING
from vhostpci_host.cli.main import main
from vhostpci_host.doctor.gather import gather
from vhostpci_host.errors import HostError
from vhostpci_shared.findings import CannotLook

WEB = {"name": "web", "state": "running"}
FAILED = {"name": "app", "state": "failed", "reason": "no space", "mode": "arena"}


def leave_socket(path: Path) -> None:
    """Leave the socket of a process that was killed."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as dead:
        dead.bind(os.fspath(path))


def test_all_devices_are_asked_for_and_those_that_failed(tmp_path: Path) -> None:
    leave_socket(tmp_path / "old.control")
    many = ControlDaemon(tmp_path / "control", {"list": [WEB, FAILED]})
    with many, ControlDaemon(tmp_path / "web.control", {"status": WEB}):
        host = gather(tmp_path, None, None, None)
    assert host.devices == (FAILED, WEB)
    (silent,) = host.silent
    assert (silent.path, silent.killed) == (str(tmp_path / "old.control"), True)


def test_one_device_is_looked_at_alone(tmp_path: Path) -> None:
    leave_socket(tmp_path / "old.control")
    with ControlDaemon(tmp_path / "web.control", {"status": WEB}):
        host = gather(tmp_path, "web", None, None)
    assert (host.devices, host.silent) == ((WEB,), ())


def test_a_daemon_that_refuses_is_silent(tmp_path: Path) -> None:
    with ControlDaemon(tmp_path / "web.control", {}):
        (silent,) = gather(tmp_path, None, None, None).silent
    assert (silent.why, silent.killed) == ("no status here", False)


def test_a_device_that_is_not_there_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(HostError, match="no daemon serves a device web"):
        gather(tmp_path, "web", None, None)


def test_a_qemu_that_is_not_there_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(HostError, match="no such program"):
        gather(tmp_path, None, "no-such-qemu", None)


ASKED = ("query-memdev", "qom-list", "qom-get")


@contextmanager
def monitor(path: Path, answer: dict[str, Any]) -> Iterator[list[str]]:
    """Be a QEMU's monitor for one client; yield the commands that it was given."""
    commands: list[str] = []
    server = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    server.bind(os.fspath(path))
    server.listen()

    def serve() -> None:
        client, _ = server.accept()
        with client:
            client.sendall(json.dumps(GREETING).encode() + b"\n")
            # The client waits for each answer, and ends no line.
            while data := client.recv(4096):
                request = json.loads(data)
                commands.append(request["execute"])
                said = answer if commands[-1] in ASKED else {"return": {}}
                # The negotiation has no ID.
                of = {key: request[key] for key in ("id",) if key in request}
                client.sendall(json.dumps({**said, **of}).encode() + b"\n")

    thread = threading.Thread(target=serve)
    thread.start()
    try:
        yield commands
    finally:
        thread.join()
        server.close()


def ask_monitor(directory: Path) -> list[dict[str, Any]]:
    """Return what a master's QEMU says of its memory."""
    host = gather(directory / "run", None, None, str(directory / "qmp"))
    assert host.memdevs is not None
    return host.memdevs()


def test_a_monitor_is_asked_for_the_memory_alone(tmp_path: Path) -> None:
    devices = [{"id": "ram", "share": False}]
    with monitor(tmp_path / "qmp", {"return": devices}) as commands:
        assert ask_monitor(tmp_path) == devices
    assert commands == ["qmp_capabilities", "query-memdev"]


def test_a_monitor_that_refuses_is_not_looked_at(tmp_path: Path) -> None:
    refusal = {"error": {"class": "CommandNotFound", "desc": "never heard of it"}}
    with (
        monitor(tmp_path / "qmp", refusal),
        pytest.raises(CannotLook, match="never heard of it"),
    ):
        ask_monitor(tmp_path)


def test_a_monitor_that_is_not_there_is_not_looked_at(tmp_path: Path) -> None:
    with pytest.raises(CannotLook, match="qmp"):
        ask_monitor(tmp_path)


def ask_for_devices(directory: Path) -> list[dict[str, Any]]:
    """Return which devices a master's QEMU says that it has."""
    host = gather(directory / "run", None, None, str(directory / "qmp"))
    assert host.plugged is not None
    return host.plugged()


def test_a_monitor_is_asked_for_all_devices(tmp_path: Path) -> None:
    there = [
        {"name": "type", "type": "string"},
        {"name": "a", "type": "child<e1000>"},
        {"name": "b", "type": "child<virtio-net-pci>"},
    ]
    with monitor(tmp_path / "qmp", {"return": there}) as commands:
        found = ask_for_devices(tmp_path)
    # A list that is not empty is true.
    card = {"driver": "virtio-net-pci", "iommu_platform": "on"}
    assert found == [{"driver": "e1000"}, card] * 2
    assert commands[1:] == ["qom-list", "qom-get"] * 2


@pytest.mark.parametrize(
    "said", [7, [7], [{}], [{"type": 7}], [{"type": "child<virtio-x>"}]]
)
def test_a_monitor_that_says_anything_is_not_looked_at(
    tmp_path: Path, said: object
) -> None:
    with (
        monitor(tmp_path / "qmp", {"return": said}),
        pytest.raises(CannotLook, match="does not answer as a QEMU"),
    ):
        ask_for_devices(tmp_path)


def test_a_monitor_needs_the_name_of_its_device() -> None:
    assert main(["doctor", "--master-qmp", "/run/web.qmp"]) == 2


def test_something_wrong_is_exit_status_1(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as ended:
        main(["doctor", "--run-dir", str(tmp_path), "-j"])
    assert ended.value.code == 1
    found = json.loads(capsys.readouterr().out)
    assert "daemon" in {one["check"] for one in found if one["level"] == "error"}

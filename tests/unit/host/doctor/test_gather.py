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


@contextmanager
def monitor(path: Path, **answers: dict[str, Any]) -> Iterator[list[str]]:
    """Be a QEMU's monitor for one client; yield the commands that it was given.

    Args:
        path: where it listens.
        answers: to commands, or to the properties that `qom-get` asks for.
    """
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
                asked = request.get("arguments", {}).get("property", commands[-1])
                said = answers.get(asked.replace("-", "_"), {"return": {}})
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
    with monitor(tmp_path / "qmp", query_memdev={"return": devices}) as commands:
        assert ask_monitor(tmp_path) == devices
    assert commands == ["qmp_capabilities", "query-memdev"]


def test_a_monitor_that_refuses_is_not_looked_at(tmp_path: Path) -> None:
    refusal = {"error": {"class": "CommandNotFound", "desc": "never heard of it"}}
    with (
        monitor(tmp_path / "qmp", query_memdev=refusal),
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


NETWORK = """\
hub 0
 \\ hub0port1: user.0: index=0,type=user,net=10.0.2.0,restrict=off\r
virtio-net-pci.0: index=0,type=nic,model=virtio-net-pci,macaddr=52:54:00:12:34:56\r
 \\ mine: index=0,type=vhost-user,vhost-user0 to chardev\r
other: index=0,type=vhost-user,vhost-user0 to more\r
"""
"""What `info network` prints."""


@pytest.mark.parametrize(
    ("netdev", "backend"),
    [("mine", "vhost-user"), ("other", "vhost-user"), ("user.0", ""), ("", "")],
)
def test_a_monitor_is_asked_for_all_devices(
    tmp_path: Path, netdev: str, backend: str
) -> None:
    there = [
        {"name": "type", "type": "string"},
        {"name": "a", "type": "child<e1000>"},
        {"name": "b", "type": "child<virtio-net-pci>"},
        {"name": "c", "type": "child<virtio-blk-pci>"},
    ]
    answers = {
        "human_monitor_command": NETWORK,
        "qom_list": there,
        "iommu_platform": True,
        "netdev": netdev,
    }
    returned = {name: {"return": answer} for name, answer in answers.items()}
    with monitor(tmp_path / "qmp", **returned) as commands:
        found = ask_for_devices(tmp_path)
    disk = {"driver": "virtio-blk-pci", "iommu_platform": "on"}
    card = {**disk, "driver": "virtio-net-pci", "backend": backend}
    assert found == [{"driver": "e1000"}, card, disk] * 2
    assert commands[1:] == [
        "human-monitor-command",
        *(["qom-list", "qom-get", "qom-get", "qom-get"] * 2),
    ]


@pytest.mark.parametrize(
    "said",
    [7, [7], [{}], [{"type": 7}], [{"type": "child<virtio-x>"}]],
)
def test_a_monitor_that_says_anything_is_not_looked_at(
    tmp_path: Path, said: object
) -> None:
    answers: dict[str, Any] = {
        "human_monitor_command": {"return": ""},
        "qom_list": {"return": said},
    }
    with (
        monitor(tmp_path / "qmp", **answers),
        pytest.raises(CannotLook, match="does not answer as a QEMU"),
    ):
        ask_for_devices(tmp_path)


@pytest.mark.parametrize("said", [7, {}, []])
def test_a_monitor_that_does_not_tell_its_network_is_not_looked_at(
    tmp_path: Path, said: object
) -> None:
    with (
        monitor(tmp_path / "qmp", human_monitor_command={"return": said}),
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

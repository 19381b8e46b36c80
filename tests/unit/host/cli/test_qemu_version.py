# SPDX-License-Identifier: Apache-2.0
"""The QEMU that is asked for its version, or that is not there."""

from pathlib import Path

import pytest

from vhostpci_host.cli import qemu_version
from vhostpci_host.cli.qemu_version import Version
from vhostpci_host.config.confined_layout import Machine
from vhostpci_host.errors import HostError


def program(directory: Path, script: str, name: str = "qemu") -> Path:
    """Make a program that does what a QEMU might."""
    path = directory / name
    path.write_text(f"#!/bin/sh\n{script}\n")
    path.chmod(0o755)
    return path


def saying(directory: Path, version: str, name: str = "qemu") -> Path:
    return program(directory, f"echo QEMU emulator version {version}", name)


@pytest.mark.parametrize(
    ("text", "version"),
    [
        ("7.2.22 '(Debian 1:7.2+dfsg-7+deb12u18)'", Version(7, 2)),
        ("10.0.13 '(Debian 1:10.0.13+ds-0+deb13u1)'", Version(10, 0)),
        ("11.1.3", Version(11, 1)),
        ("9.1.92 '(v9.2.0-rc2)'", Version(9, 1)),
    ],
)
def test_version_is_what_the_program_says(
    tmp_path: Path, text: str, version: Version
) -> None:
    path = saying(tmp_path, text)
    qemu = qemu_version.find(str(path))
    assert (qemu.version, qemu.program) == (version, path)
    assert str(qemu) == f"{path} is QEMU {version}"


def test_versions_are_compared_as_numbers() -> None:
    assert Version(7, 2) < Version(9, 2) < Version(10, 0) < Version(11, 1)


def test_qemu_of_the_path_is_asked_by_default(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    saying(tmp_path, "8.1.0", qemu_version.PROGRAM)
    monkeypatch.setenv("PATH", f"{tmp_path}:/usr/bin:/bin")
    assert qemu_version.find(None).version == Version(8, 1)


def test_without_a_qemu_a_version_is_assumed_and_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    qemu = qemu_version.find(None)
    assert qemu.version == Version(10, 0)
    assert "no qemu-system-x86_64 is in PATH: version 10.0 is assumed" in str(qemu)


def test_qemu_that_has_the_machine_is_asked(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    saying(tmp_path, "11.1.3", qemu_version.PROGRAM)
    monkeypatch.setenv("PATH", str(tmp_path))
    missing = str(qemu_version.find(None, Machine.VIRT))
    assert missing.startswith("no qemu-system-aarch64 is in PATH")
    saying(tmp_path, "7.2.22", "qemu-system-aarch64")
    monkeypatch.setenv("PATH", f"{tmp_path}:/usr/bin:/bin")
    assert qemu_version.find(None, Machine.VIRT).version == Version(7, 2)


def test_program_that_is_not_there_is_named(tmp_path: Path) -> None:
    with pytest.raises(HostError, match=r"--qemu .*/none: there is no such program"):
        qemu_version.find(str(tmp_path / "none"))


def test_program_that_the_kernel_does_not_run_is_named(tmp_path: Path) -> None:
    path = program(tmp_path, "")
    path.write_bytes(b"\x7fELF")
    with pytest.raises(HostError, match=r"/qemu -version: .*; --qemu names"):
        qemu_version.find(str(path))


@pytest.mark.parametrize(
    "script", ["echo hello", "exit 1", "echo QEMU emulator version 9.0; exit 3"]
)
def test_program_that_is_no_qemu_is_refused(tmp_path: Path, script: str) -> None:
    with pytest.raises(HostError, match=r"exit status .*--qemu names"):
        qemu_version.find(str(program(tmp_path, script)))


def test_program_that_does_not_answer_is_given_up(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(qemu_version, "_ANSWER_TIME", 0.1)
    with pytest.raises(HostError, match="timed out"):
        qemu_version.find(str(program(tmp_path, "exec sleep 20")))

# SPDX-License-Identifier: Apache-2.0
"""Loading a driver's module, and what is said where the kernel will not have it."""

import os
import stat
from pathlib import Path

import pytest

from tests.fakes.sysfs import FakeSystem
from vhostpci_guest.pci.kernel import System

DRIVER = "uio_vhostpci"


def lock_down(system: System) -> None:
    path = system.sys / "kernel/security"
    path.mkdir(parents=True)
    (path / "lockdown").write_text("none [integrity] confidentiality\n")


@pytest.fixture
def system(tmp_path: Path) -> FakeSystem:
    return FakeSystem(tmp_path, DRIVER)


def test_loaded_driver_needs_no_modprobe(tmp_path: Path) -> None:
    system = FakeSystem(tmp_path)
    system.load_now("vfio-pci")
    assert system.load("vfio-pci") is None


def test_dry_run_loads_nothing(system: FakeSystem) -> None:
    assert system.load(DRIVER, dry=True) is None
    assert list((system.sys / "bus/pci/drivers").iterdir()) == []


def test_error_of_a_missing_module_says_what_to_install(tmp_path: Path) -> None:
    why = str(FakeSystem(tmp_path).load(DRIVER, dry=True))
    release = os.uname().release
    assert f"no kernel module {DRIVER} for {release}" in why
    assert f"apt install dkms linux-headers-{release}" in why


@pytest.mark.parametrize(
    ("said", "locked_down", "advice"),
    [
        ("Key was rejected by service", True, "mokutil --import"),
        ("Required key not available", False, "mokutil --import"),
        ("Operation not permitted", True, "Secure Boot"),
        ("Operation not permitted", False, "run as root"),
        ("Exec format error", False, "dkms autoinstall"),
        ("Unknown symbol in module", False, "Unknown symbol in module; see dmesg"),
    ],
)
def test_error_of_a_refused_module_says_what_to_do(
    system: FakeSystem, said: str, locked_down: bool, advice: str
) -> None:
    if locked_down:
        lock_down(system)
    system.refusals[DRIVER] = said
    why = str(system.load(DRIVER))
    assert DRIVER in why
    assert advice in why


@pytest.mark.parametrize("unsigned", [True, False], ids=["unsigned", "signed"])
@pytest.mark.parametrize("locked_down", [True, False], ids=["lockdown", "no lockdown"])
def test_module_without_signature_is_refused_by_a_dry_run_in_lockdown(
    system: FakeSystem, locked_down: bool, unsigned: bool
) -> None:
    if locked_down:
        lock_down(system)
    if unsigned:
        system.unsigned.add(DRIVER)
    why = system.load(DRIVER, dry=True)
    assert (why is not None) == (locked_down and unsigned)
    if why is not None:
        assert "it is not signed" in why
        assert "mokutil --import" in why


def test_signer_is_what_modinfo_prints(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    program = tmp_path / "modinfo"
    program.write_text('#!/bin/sh\necho "$*"\n')
    program.chmod(program.stat().st_mode | stat.S_IXUSR)
    monkeypatch.setenv("PATH", str(tmp_path))
    assert System(tmp_path).signer("foo") == "-F signer foo"
    program.unlink()
    assert System(tmp_path).signer("foo") is None


def test_module_that_has_no_such_driver_is_an_error(
    system: FakeSystem, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(system, "load_now", lambda _driver: None)
    assert "has no PCI driver" in str(system.load(DRIVER))


def test_modprobe_returns_its_error(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    program = tmp_path / "modprobe"
    program.write_text('#!/bin/sh\necho "modprobe: $*: no" >&2\nexit 1\n')
    program.chmod(program.stat().st_mode | stat.S_IXUSR)
    monkeypatch.setenv("PATH", str(tmp_path))
    assert System(tmp_path).modprobe("foo", dry=True) == "modprobe: -n foo: no"
    assert System(tmp_path).modprobe("foo") == "modprobe: foo: no"


def test_error_without_modprobe_names_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    assert "modprobe: No such file" in str(System(tmp_path).load("foo"))

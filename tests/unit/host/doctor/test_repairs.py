# SPDX-License-Identifier: Apache-2.0
"""The commands that `doctor` names are whole: they can be run as they stand."""

from collections.abc import Callable
from dataclasses import replace

import pytest

from tests.unit.host.doctor.healthy import SAFE_MASTER
from tests.unit.host.doctor.seeded import Seeded
from vhostpci_host.doctor.checks import CHECKS
from vhostpci_shared.findings import examine

ARGUMENTS = "vhostpci-host qemu-args safe --role master"


def attached(on: Seeded) -> None:
    """The master brings its memory, which the daemon does not know the size of."""
    on.safe["mode"] = "attach"
    on.safe["memory"]["path"] = None


def on_a_virt(on: Seeded) -> None:
    on.line(SAFE_MASTER, "q35,max-ram-below-4g=652M,sata=off", "virt")


@pytest.mark.parametrize(
    ("kind", "options"),
    [
        (lambda _: None, ""),
        (attached, " --memory SIZE"),
        (on_a_virt, " --machine virt"),
    ],
    ids=["arena", "attach", "virt"],
)
def test_command_is_that_of_the_devices_mode_and_machine(
    kind: Callable[[Seeded], None], options: str
) -> None:
    on = Seeded()
    kind(on)
    on.line(SAFE_MASTER, "iommu_platform=on,", "")
    on.line(SAFE_MASTER, "memory-backend-ram,id=m0", "memory-backend-memfd,id=m0")
    on.kernel_word("numa=off", "")
    repairs = {one.check: one.repair for one in examine(CHECKS, on.host)}
    for check, after in (
        ("confined-card", " prints it"),
        ("confined-memory", " prints them"),
        ("confined-words", " as the memory arguments"),
    ):
        assert f"{ARGUMENTS}{options}{after}" in repairs[check]


def test_script_is_that_of_the_devices_mode() -> None:
    on = Seeded()
    attached(on)
    path = f"/proc/{SAFE_MASTER}/cmdline"
    on.machine.files[path] = on.machine.files[path].partition("-append")[0]
    host = replace(on.host, plugged=None)
    found = {one.check: one.found for one in examine(CHECKS, host)}
    script = "vhostpci-host master-check safe --memory SIZE prints"
    assert script in found["confined-words"]
    assert script in found["confined-plugged"]


def test_command_for_the_master_of_an_attach_device_has_its_memory() -> None:
    on = Seeded()
    on.db.update(master=None, state="no master")
    repairs = {one.about: one.repair for one in examine(CHECKS, on.host) if one.repair}
    assert "qemu-args db --role master --memory SIZE prints" in repairs["db"]


def test_command_for_a_master_that_was_refused_has_its_memory() -> None:
    on = Seeded()
    attached(on)
    on.safe["carrier"] |= {"off": True, "why_off": "refused", "refused": "too large"}
    repairs = {one.check: one.repair for one in examine(CHECKS, on.host) if one.repair}
    assert f"`{ARGUMENTS} --memory SIZE`" in repairs["master-carrier"]


def test_daemon_is_replaced_by_the_name_of_a_device_of_its() -> None:
    """Without a name it would be the daemon of `run --config`, if there is one."""
    on = Seeded()
    on.db["daemon"] = {"pid": 101, "version": "0.0.9"}
    (repair,) = (one.repair for one in examine(CHECKS, on.host) if "0.0.9" in one.found)
    assert repair.startswith("vhostpci-host restart db (")

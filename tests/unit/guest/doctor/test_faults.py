# SPDX-License-Identifier: Apache-2.0
"""`vhostpci-guest doctor` finds each seeded fault, and complains of nothing else."""

from dataclasses import replace

import pytest

from tests.unit.guest.doctor.faults import FAULTS, Fault, Seeded
from tests.unit.guest.doctor.healthy import healthy
from vhostpci_guest.doctor.checks import CHECKS
from vhostpci_guest.doctor.slave import Slave
from vhostpci_shared.findings import Finding, Level, examine


def complaints(slave: Slave) -> list[Finding]:
    """Return what is not as it should be."""
    bad = (Level.ERROR, Level.WARN)
    return [one for one in examine(CHECKS, slave) if one.level in bad]


def test_a_healthy_machine_has_no_complaint() -> None:
    assert complaints(healthy()) == []


def test_every_check_can_look_at_a_healthy_machine() -> None:
    findings = list(examine(CHECKS, healthy()))
    looked = {one.check for one in findings if one.level is Level.OK}
    assert {check.name for check in CHECKS} - looked == set()


@pytest.mark.parametrize("fault", FAULTS, ids=lambda fault: fault.name)
def test_a_fault_is_found_by_its_check_alone(fault: Fault) -> None:
    seeded = Seeded()
    slave = fault.seed(seeded) or seeded.slave
    found = complaints(slave)
    assert {one.check for one in found} == {fault.check}
    for one in found:
        assert one.looked_at
        assert one.found
        assert one.means
        assert one.repair


def test_every_check_has_a_fault_that_it_finds() -> None:
    assert {fault.check for fault in FAULTS} == {check.name for check in CHECKS}


def test_without_root_a_slave_process_may_have_no_device() -> None:
    slave = replace(healthy(), devices=(), links=(), forbidden="run as root")
    assert complaints(slave) == []


def test_a_slave_that_is_a_process_needs_no_device() -> None:
    slave = healthy()
    link = {**slave.links[0], "device": "/run/vhostpci/web.ivshmem"}
    assert complaints(replace(slave, devices=(), links=(link,))) == []

# SPDX-License-Identifier: Apache-2.0
"""`vhostpci-host doctor` finds each seeded fault, and complains of nothing else."""

import pytest

from tests.seeded_faults import blind, complaints
from tests.unit.host.doctor.faults import FAULTS
from tests.unit.host.doctor.healthy import healthy
from tests.unit.host.doctor.seeded import Fault, Seeded
from vhostpci_host.doctor.checks import CHECKS
from vhostpci_shared.findings import Level, examine


def test_a_healthy_machine_has_no_complaint() -> None:
    assert complaints(CHECKS, healthy()) == []


def test_every_check_can_look_at_a_healthy_machine() -> None:
    assert blind(CHECKS, healthy()) == set()


def test_what_is_not_looked_at_is_not_called_good() -> None:
    """A confined master's memory is `confined-memory`'s, whatever that has found."""
    others = ("memory-shared", "memory-regions")
    found = [one for one in examine(CHECKS, healthy()) if one.about == "safe"]
    levels = {one.check: one.level for one in found if one.check in others}
    assert levels == dict.fromkeys(others, Level.SKIPPED)


@pytest.mark.parametrize("fault", FAULTS, ids=lambda fault: fault.name)
def test_a_fault_is_found_by_its_check_alone(fault: Fault) -> None:
    seeded = Seeded()
    host = fault.seed(seeded) or seeded.host
    found = complaints(CHECKS, host)
    assert {one.check for one in found} == {fault.check, fault.also} - {""}


@pytest.mark.parametrize("fault", FAULTS, ids=lambda fault: fault.name)
def test_repair_of_a_device_names_the_device(fault: Fault) -> None:
    seeded = Seeded()
    host = fault.seed(seeded) or seeded.host
    repairs = [one.repair for one in complaints(CHECKS, host) if one.about]
    assert not [repair for repair in repairs if "NAME" in repair.split()]


def test_every_check_has_a_fault_that_it_finds() -> None:
    assert {fault.check for fault in FAULTS} == {check.name for check in CHECKS}

# SPDX-License-Identifier: Apache-2.0
"""`vhostpci-guest doctor` finds each seeded fault, and complains of nothing else."""

from dataclasses import replace

import pytest

from tests.seeded_faults import blind, complaints
from tests.unit.guest.doctor.faults import FAULTS, Fault, Seeded
from tests.unit.guest.doctor.healthy import healthy
from vhostpci_guest.doctor.checks import CHECKS


def test_a_healthy_machine_has_no_complaint() -> None:
    assert complaints(CHECKS, healthy()) == []


def test_every_check_can_look_at_a_healthy_machine() -> None:
    assert blind(CHECKS, healthy()) == set()


@pytest.mark.parametrize("fault", FAULTS, ids=lambda fault: fault.name)
def test_a_fault_is_found_by_its_check_alone(fault: Fault) -> None:
    seeded = Seeded()
    slave = fault.seed(seeded) or seeded.slave
    found = complaints(CHECKS, slave)
    assert {one.check for one in found} == {fault.check}


def test_every_check_has_a_fault_that_it_finds() -> None:
    assert {fault.check for fault in FAULTS} == {check.name for check in CHECKS}


def test_without_root_a_slave_process_may_have_no_device() -> None:
    slave = replace(healthy(), devices=(), links=(), forbidden="run as root")
    assert complaints(CHECKS, slave) == []


def test_a_slave_that_is_a_process_needs_no_device() -> None:
    slave = healthy()
    link = {**slave.links[0], "device": "/run/vhostpci/web.ivshmem"}
    assert complaints(CHECKS, replace(slave, devices=(), links=(link,))) == []

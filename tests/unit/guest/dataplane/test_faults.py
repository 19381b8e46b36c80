# SPDX-License-Identifier: Apache-2.0
"""What the user reads when the C ring driver stops a ring or refuses a call."""

import errno

import pytest

from vhostpci_guest.dataplane.faults import Fault, RingError, check, reason


@pytest.mark.parametrize("fault", [fault for fault in Fault if fault])
def test_each_fault_has_a_reason_and_a_remedy(fault: Fault) -> None:
    assert "; " in reason(fault)


def test_ring_without_a_fault_has_no_reason() -> None:
    assert reason(Fault.NONE) == ""


def test_reason_names_the_error_of_the_system() -> None:
    assert reason(Fault.TAP, errno.EIO).startswith(
        "the TAP failed (Input/output error)"
    )


def test_result_that_is_no_error_is_passed_on() -> None:
    assert check(0, "stop a ring") == 0
    assert check(17, "stop a ring") == 17


@pytest.mark.parametrize("number", [errno.EBUSY, errno.EIO])
def test_error_names_the_action_the_cause_and_a_remedy(number: int) -> None:
    with pytest.raises(RingError, match=r"cannot stop a ring: .+; .+") as caught:
        check(-number, "stop a ring")
    assert caught.value.errno == number

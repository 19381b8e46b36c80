# SPDX-License-Identifier: Apache-2.0
"""A lab that a test has changed is not the next test's lab."""

from collections.abc import Iterator
from contextlib import contextmanager, suppress

import pytest

from tests.process.shared import Shared


class Lab:
    """A lab that can be changed."""

    started = 0
    running = 0

    def __init__(self) -> None:
        self.changed = False

    @contextmanager
    def unchanged(self) -> Iterator[None]:
        assert not self.changed
        yield
        assert not self.changed


@pytest.fixture
def labs() -> Iterator[Shared[Lab]]:
    """A lab to share, and a check that each one that was started has ended."""
    Lab.started = Lab.running = 0
    with Shared(start, Lab.unchanged) as labs:
        yield labs
    assert Lab.running == 0


@contextmanager
def start() -> Iterator[Lab]:
    Lab.started += 1
    Lab.running += 1
    yield Lab()
    Lab.running -= 1


def test_all_tests_that_leave_it_unchanged_have_the_same_lab(labs: Shared[Lab]) -> None:
    seen = set()
    for _ in range(3):
        with labs.lent() as lab:
            seen.add(lab)
    assert len(seen) == Lab.started == 1


def test_test_that_changes_it_fails_and_the_next_one_has_a_new_lab(
    labs: Shared[Lab],
) -> None:
    with pytest.raises(AssertionError), labs.lent() as changed:
        changed.changed = True
    with labs.lent() as lab:
        assert lab is not changed
    assert Lab.running == 1


def test_lab_that_changes_between_two_tests_fails_one_of_them_only(
    labs: Shared[Lab],
) -> None:
    with labs.lent() as lab:
        pass
    lab.changed = True
    with suppress(AssertionError), labs.lent():
        pytest.fail("a changed lab was lent")
    with labs.lent() as another:
        assert another is not lab

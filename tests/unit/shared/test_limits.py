# SPDX-License-Identifier: Apache-2.0
"""A process takes as many descriptors as it is allowed."""

import resource

import pytest

from vhostpci_shared.limits import raise_descriptor_limit


def test_limit_of_descriptors_becomes_the_hard_limit() -> None:
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard - 1, hard))
    try:
        raise_descriptor_limit()
        assert resource.getrlimit(resource.RLIMIT_NOFILE) == (hard, hard)
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


@pytest.mark.parametrize("error", [ValueError, PermissionError])
def test_limit_that_cannot_be_raised_stays(
    monkeypatch: pytest.MonkeyPatch, error: type[Exception]
) -> None:
    """As where the hard limit is above that of the machine (fs.nr_open)."""

    def refuse(which: int, limits: tuple[int, int]) -> None:
        raise error("not permitted")

    monkeypatch.setattr(resource, "setrlimit", refuse)
    raise_descriptor_limit()

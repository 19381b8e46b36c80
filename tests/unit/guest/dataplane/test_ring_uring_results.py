# SPDX-License-Identifier: Apache-2.0
"""What becomes of a batch of packets, by what the kernel makes of each request.

tests/ringtest/uring.c is the kernel.
"""

from pathlib import Path

import pytest

from tests.ringtest.build import build_uring, run


@pytest.fixture(scope="module")
def uring(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build_uring(tmp_path_factory.mktemp("uring") / "uring")


NEVER_FULL = str(2**31 - 1)
"""The limit of a TAP's send buffer that is none."""


@pytest.mark.parametrize("when", ["now", "late"])
@pytest.mark.parametrize(
    ("limit", "takes", "results", "expected"),
    [
        (NEVER_FULL, "99", "64 64 64", "64 64 64 0"),
        # What failed before a packet that was written is lost: -105 is ENOBUFS.
        (NEVER_FULL, "99", "64 -11 64 -22 64", "64 -105 64 -22 64 0"),
        # Behind the last one that was written only the first failure counts.
        (NEVER_FULL, "99", "64 -11 -11 -22", "64 -11 0 0 0"),
        (NEVER_FULL, "99", "64 -14 -14 -14", "64 -14 0 0 0"),
        (NEVER_FULL, "99", "-14 64 -14 -14", "-14 64 -14 0 0"),
        (NEVER_FULL, "99", "64 skip 64 skip", "64 -105 64 0 0"),
        (NEVER_FULL, "99", "skip skip skip", "0 0 0 0"),
        # Linked, because the TAP may be full.
        ("-", "99", "64 64 64", "64 64 64 0"),
        ("-", "99", "64 -11 64 64", "64 -11 0 0 0"),
        ("212992", "99", "64 -22 64 64", "64 -22 0 0 0"),
        ("-", "99", "64 skip 64 -11", "64 -105 64 -11 0"),
        # The kernel takes some of the requests, or none.
        (NEVER_FULL, "2", "64 64 64 64", "64 64 0 0 0"),
        ("-", "2", "64 64 64 64", "64 64 0 0 0"),
        (NEVER_FULL, "-12", "64 64 64", "0 0 0 0"),
        (NEVER_FULL, "-4", "64 64 64", "0 0 0 0"),
        (NEVER_FULL, "-1", "64 64 64", "0 0 0 1"),
        # A signal was there first.
        (NEVER_FULL, "99", "64 -4 -4", "64 0 0 0"),
        # The file is none that the kernel writes without waiting.
        (NEVER_FULL, "99", "-95 -95 -95", "0 0 0 95"),
        ("-", "99", "-95 64 64", "0 0 0 95"),
    ],
)
def test_results_say_what_is_still_to_be_written(
    uring: Path, limit: str, takes: str, when: str, results: str, expected: str
) -> None:
    done = run(uring, limit, takes, when, *results.split())
    assert (done.stdout.strip(), done.stderr) == (expected, "")


@pytest.mark.parametrize(
    ("limit", "expected"), [(NEVER_FULL, "64 -22 64 0"), ("1000", "0 0 0 95")]
)
def test_kernel_that_may_wait_for_a_tap_is_asked_only_if_it_never_does(
    uring: Path, limit: str, expected: str
) -> None:
    """Linux 6.1 does not know RWF_NOWAIT for a TAP."""
    done = run(uring, limit, "99", "old", "64", "-22", "64")
    assert (done.stdout.strip(), done.stderr) == (expected, "")

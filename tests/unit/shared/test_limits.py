# SPDX-License-Identifier: Apache-2.0
"""A process takes as many descriptors as it is allowed."""

import errno
import resource

import pytest

from vhostpci_shared.limits import (
    exhausted,
    no_descriptors,
    raise_descriptor_limit,
    shortage,
)


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


def test_lack_of_descriptors_is_told_with_the_limit_and_its_value() -> None:
    soft, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    text = no_descriptors(OSError(errno.EMFILE, "Too many open files"))
    assert f"of the {soft} that this process may have" in text
    assert "LimitNOFILE=" in text
    assert "ulimit -n" in text
    machine = no_descriptors(OSError(errno.ENFILE, "Too many open files in system"))
    assert "fs.file-max" in machine
    assert "ulimit" not in machine


@pytest.mark.parametrize(
    ("number", "none_left"),
    [(errno.EMFILE, True), (errno.ENFILE, True), (errno.EAGAIN, False)],
)
def test_process_or_machine_may_have_no_descriptor_left(
    number: int, *, none_left: bool
) -> None:
    assert exhausted(OSError(number, "")) == none_left


def hide(why: OSError) -> None:
    """Report an error of the kernel as our code does: by an error of another type."""
    try:
        raise why
    except OSError:
        raise RuntimeError("cannot make vp0") from None


def test_lack_of_descriptors_is_found_behind_another_error() -> None:
    why = OSError(errno.EMFILE, "Too many open files")
    with pytest.raises(RuntimeError) as raised:
        hide(why)
    assert shortage(raised.value) is why
    assert shortage(OSError(errno.ENOENT, "No such file")) is None
    assert not exhausted(raised.value)

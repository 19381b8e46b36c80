# SPDX-License-Identifier: Apache-2.0
"""`vhostpci-guest run --tx-method`: how packets go to the TAP."""

import errno
import logging

import pytest

from vhostpci_guest.cli import run
from vhostpci_guest.cli.main import main
from vhostpci_guest.dataplane.tx_methods import AUTO, IO_URING, WRITEV, io_uring_reason

FORBIDDEN = io_uring_reason(errno.EPERM)


@pytest.fixture
def forbidden(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(run, "io_uring_error", lambda: errno.EPERM)


@pytest.mark.usefixtures("forbidden")
def test_auto_says_why_packets_go_one_by_one(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    assert not run.use_io_uring(AUTO)
    assert caplog.messages == [
        f"packets go to the TAP one by one (writev): {FORBIDDEN}"
    ]


@pytest.mark.usefixtures("forbidden")
def test_io_uring_that_cannot_be_had_ends_the_agent(
    caplog: pytest.LogCaptureFixture,
) -> None:
    assert main(["run", "--tx-method", IO_URING]) == 1
    assert f"--tx-method io_uring: {FORBIDDEN}" in caplog.text


def test_method_is_taken_where_there_is_io_uring(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(run, "io_uring_error", lambda: 0)
    taken = {method: run.use_io_uring(method) for method in (AUTO, WRITEV, IO_URING)}
    assert taken == {AUTO: True, WRITEV: False, IO_URING: True}
    assert not caplog.messages


@pytest.mark.parametrize(
    ("error", "text"),
    [
        (errno.ENOSYS, "this kernel has no io_uring"),
        (errno.ENOMEM, "RLIMIT_MEMLOCK"),
        (errno.EMFILE, "the kernel refuses io_uring: Too many open files"),
    ],
)
def test_reason_names_what_is_missing(error: int, text: str) -> None:
    assert text in io_uring_reason(error)

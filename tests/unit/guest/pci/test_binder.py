# SPDX-License-Identifier: Apache-2.0
"""The thread that binds devices: results, exceptions, and its end."""

import os
import select
import threading
from collections.abc import Iterator
from concurrent.futures import Future
from functools import partial

import pytest

from vhostpci_guest.eventfds import drain
from vhostpci_guest.pci import binder as binder_module
from vhostpci_guest.pci.binder import Binder


class Results:
    """What jobs came to, in the order in which that was delivered."""

    def __init__(self) -> None:
        self.values: list[object] = []
        self.threads: set[int] = set()

    def __call__(self, outcome: Future[object]) -> None:
        self.threads.add(threading.get_ident())
        self.values.append(outcome.exception() or outcome.result())


@pytest.fixture
def results() -> Results:
    return Results()


@pytest.fixture
def binder() -> Iterator[Binder]:
    binder = Binder()
    yield binder
    binder.close()


def wait(binder: Binder, seconds: float = 5) -> bool:
    """Wait until there are results."""
    return bool(select.select([binder], [], [], seconds)[0])


def test_job_runs_on_a_thread_and_its_result_arrives_where_it_is_taken(
    binder: Binder, results: Results
) -> None:
    binder.submit("asking", threading.get_ident, results)
    assert wait(binder)
    assert results.values == []
    binder.deliver()
    assert results.threads == {threading.get_ident()}
    assert results.values != [threading.get_ident()]
    assert binder.pending == 0
    assert not wait(binder, 0)


def test_jobs_run_one_after_the_other(binder: Binder, results: Results) -> None:
    for number in range(20):
        binder.submit(f"job {number}", partial(int, number), results)
    while binder.pending:
        assert wait(binder)
        binder.deliver()
    assert results.values == list(range(20))


def test_exception_of_a_job_is_its_result(binder: Binder, results: Results) -> None:
    def fail() -> None:
        raise OSError(5, "no")

    binder.submit("failing", fail, results)
    assert wait(binder)
    binder.deliver()
    (error,) = results.values
    assert isinstance(error, OSError)


def test_result_that_arrives_during_a_delivery_is_signalled(
    binder: Binder, results: Results, monkeypatch: pytest.MonkeyPatch
) -> None:
    go_on = threading.Event()
    drains = 0

    def drain_late(fd: int) -> bool:
        nonlocal drains
        drains += 1
        if drains > 1:  # after the queue was read: the job finishes just now
            go_on.set()
            wait(binder)
        return drain(fd)

    monkeypatch.setattr(binder_module, "drain", drain_late)
    binder.submit("waiting", go_on.wait, results)
    binder.deliver()
    go_on.set()
    assert wait(binder)
    monkeypatch.undo()


def test_results_behind_one_whose_delivery_fails_are_not_lost(
    results: Results,
) -> None:
    def refuse(_outcome: Future[int]) -> None:
        raise KeyError

    binder = Binder()
    second = threading.Event()
    binder.submit("first", lambda: 1, refuse)
    binder.submit("second", second.set, results)
    assert second.wait(5)
    with pytest.raises(KeyError):
        binder.deliver()
    binder.close()
    assert results.values == [None]


def test_close_finishes_what_is_submitted_and_what_that_submits(
    results: Results,
) -> None:
    binder = Binder()

    def more(_outcome: Future[int]) -> None:
        binder.submit("second", lambda: 2, results)

    binder.submit("first", lambda: 1, more)
    binder.close()
    assert results.values == [2]


def test_close_leaves_a_job_that_hangs_behind(caplog: pytest.LogCaptureFixture) -> None:
    go_on = threading.Event()
    binder = Binder(stuck=0.1)
    binder.submit("binding 0000:00:05.0", go_on.wait, lambda _outcome: None)
    binder.close()
    assert "binding 0000:00:05.0 is not finished after 0.1 s" in caplog.text
    go_on.set()
    assert wait(binder)  # the thread may still write to it
    os.close(binder.fileno())

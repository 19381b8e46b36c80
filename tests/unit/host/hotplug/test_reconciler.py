# SPDX-License-Identifier: Apache-2.0
"""The wanted windows become the plugged ones, even if the slave VM fails or hangs."""

import asyncio
import errno
import logging
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest

from tests.fakes.slave_vm import FakeVm
from tests.waiting import until
from vhostpci_host.hotplug import reconciler
from vhostpci_host.hotplug.reconciler import Reconciler
from vhostpci_host.hotplug.vm import PlugError
from vhostpci_host.interfaces import Plug


@pytest.fixture(autouse=True)
def short_pauses(monkeypatch: pytest.MonkeyPatch) -> None:
    for pause in (
        *("FIRST_PAUSE", "LONGEST_PAUSE", "AWAY_PAUSE", "UNPLUG_EVERY"),
        *("CHECK_AFTER", "CLOSE_TIME"),
    ):
        monkeypatch.setattr(reconciler, pause, getattr(reconciler, pause) / 100)


@pytest.fixture
def time_to_close(monkeypatch: pytest.MonkeyPatch) -> float:
    """Give `close` longer than a loaded machine needs; return so many seconds."""
    seconds = 20.0
    monkeypatch.setattr(reconciler, "CLOSE_TIME", seconds)
    return seconds


def plug(window: int, *, vectors: int = 1, size: int = 1 << 30) -> Plug:
    return Plug(
        window=window,
        socket=Path(f"/run/vhostpci/web.ivshmem.{window}"),
        vectors=vectors,
        size=size,
    )


def plugs(*windows: int) -> frozenset[Plug]:
    return frozenset(plug(window) for window in windows)


async def nothing() -> None:
    """Release nothing."""


@asynccontextmanager
async def hotplugged(vm: FakeVm) -> AsyncIterator[Reconciler]:
    plugger = Reconciler("web", "the slave VM at /run/slave.qmp", vm, nothing)
    try:
        yield plugger
    finally:
        await plugger.close()


def test_window_0_is_plugged_last() -> None:
    async def scenario() -> None:
        vm = FakeVm()
        async with hotplugged(vm) as plugger:
            plugger.want(plugs(0, 256, 300))
            await until(lambda: len(vm.steps) == 3)
            assert vm.steps == ["plug 300", "plug 256", "plug 0"]
            assert plugger.status() == {
                "slave": "the slave VM at /run/slave.qmp",
                "connected": True,
                "plugged": [0, 256, 300],
                "wanted": [0, 256, 300],
                "problem": "",
            }

    asyncio.run(scenario())


def test_window_that_is_no_longer_wanted_is_unplugged() -> None:
    async def scenario() -> None:
        vm = FakeVm()
        async with hotplugged(vm) as plugger:
            plugger.want(plugs(0, 256))
            await until(lambda: vm.windows == {0, 256})
            plugger.want(plugs(0, 257))
            await until(lambda: vm.windows == {0, 257})
            assert "unplug 0" not in vm.steps

    asyncio.run(scenario())


def test_windows_that_were_wanted_last_are_plugged_in_the_end() -> None:
    async def scenario() -> None:
        vm = FakeVm()
        async with hotplugged(vm) as plugger:
            for window in range(256, 1256):
                plugger.want(plugs(0, window))
                if window % 100 == 0:
                    await asyncio.sleep(0)
            await until(lambda: vm.windows == {0, 1255})

    asyncio.run(scenario())


def test_windows_that_are_adopted_stay_plugged() -> None:
    """A daemon that goes on for another one has its windows; a third one is not its."""

    async def scenario() -> None:
        vm = FakeVm()
        vm.windows = {0, 256, 999}
        changes: list[frozenset[int]] = []
        async with hotplugged(vm) as plugger:
            plugger.adopt(plugs(0, 256), lambda: changes.append(plugger.plugged))
            plugger.want(plugs(0, 256))
            await until(lambda: vm.windows == {0, 256})
            assert vm.steps == ["unplug 999"]
            assert plugger.plugged == {0, 256}
            plugger.want(plugs(0, 257))
            await until(lambda: vm.windows == {0, 257})
            assert changes[-1] == {0, 257}
            assert "unplug 0" not in vm.steps

    asyncio.run(scenario())


def test_adopted_window_that_is_gone_is_plugged_again() -> None:
    """The slave VM was restarted while no daemon ran."""

    async def scenario() -> None:
        vm = FakeVm()
        async with hotplugged(vm) as plugger:
            plugger.adopt(plugs(0, 256), lambda: None)
            plugger.want(plugs(0, 256))
            await until(lambda: vm.windows == {0, 256})
            assert vm.steps == ["plug 256", "plug 0"]

    asyncio.run(scenario())


def test_window_that_a_previous_daemon_left_is_unplugged_and_plugged_again() -> None:
    async def scenario() -> None:
        vm = FakeVm()
        vm.windows = {0, 999}
        async with hotplugged(vm) as plugger:
            plugger.want(plugs(0))
            await until(lambda: "plug 0" in vm.steps)
            await until(lambda: vm.windows == {0})
            assert vm.steps.index("unplug 0") < vm.steps.index("plug 0")

    asyncio.run(scenario())


def test_window_that_was_not_wanted_for_a_moment_is_plugged_again() -> None:
    async def scenario() -> None:
        vm = FakeVm()
        async with hotplugged(vm) as plugger:
            plugger.want(plugs(0))
            await until(lambda: plugger.status()["plugged"] == [0])
            plugger.want(frozenset())
            plugger.want(plugs(0))
            await until(lambda: vm.steps == ["plug 0", "unplug 0", "plug 0"])

    asyncio.run(scenario())


def test_window_with_another_number_of_vectors_is_plugged_again() -> None:
    async def scenario() -> None:
        vm = FakeVm()
        async with hotplugged(vm) as plugger:
            plugger.want(plugs(0))
            await until(lambda: plugger.status()["plugged"] == [0])
            plugger.want(frozenset({plug(0, vectors=5)}))
            await until(lambda: vm.steps == ["plug 0", "unplug 0", "plug 0"])

    asyncio.run(scenario())


def test_guest_that_holds_a_window_is_asked_again_and_again(
    caplog: pytest.LogCaptureFixture,
) -> None:
    async def scenario() -> None:
        vm = FakeVm()
        async with hotplugged(vm) as plugger:
            plugger.want(plugs(0, 256))
            await until(lambda: plugger.status()["plugged"] == [0, 256])
            vm.refuse_to_unplug(256)
            plugger.want(plugs(0))
            await until(lambda: vm.asked[256] == 3)
            assert plugger.status()["problem"].endswith("not release window 256")
            vm.refuse_to_unplug()
            await until(lambda: vm.windows == {0})
            await until(lambda: plugger.status()["problem"] == "")

    asyncio.run(scenario())
    warned = [r for r in caplog.records if r.levelno == logging.WARNING]
    assert len(warned) == 1


def test_only_the_same_window_waits_until_its_old_device_is_unplugged() -> None:
    async def scenario() -> None:
        vm = FakeVm()
        async with hotplugged(vm) as plugger:
            plugger.want(plugs(0))
            await until(lambda: plugger.status()["plugged"] == [0])
            vm.refuse_to_unplug(0)
            plugger.want(frozenset({plug(0, vectors=5), plug(256)}))
            await until(lambda: vm.asked[0] == 3)
            assert vm.steps == ["plug 0", "plug 256"]
            vm.refuse_to_unplug()
            await until(lambda: vm.steps[2:] == ["unplug 0", "plug 0"])

    asyncio.run(scenario())


def test_refused_window_is_logged_once_tried_again_and_delays_no_other(
    caplog: pytest.LogCaptureFixture,
) -> None:
    async def scenario() -> None:
        vm = FakeVm()
        vm.refuse(256)
        async with hotplugged(vm) as plugger:
            plugger.want(plugs(0, 256))
            await until(lambda: vm.looks > 3)
            assert plugger.status()["plugged"] == [0]
            assert "no root port is free for window 256" in plugger.status()["problem"]
            vm.refuse()
            await until(lambda: plugger.status()["plugged"] == [0, 256])
            assert plugger.status()["problem"] == ""

    asyncio.run(scenario())
    warned = [r for r in caplog.records if r.levelno == logging.WARNING]
    assert len(warned) == 1


def test_window_that_would_abort_the_vm_is_never_plugged() -> None:
    async def scenario() -> None:
        vm = FakeVm()
        async with hotplugged(vm) as plugger:
            plugger.want(frozenset({plug(0), plug(256, size=3 << 30)}))
            await until(lambda: vm.looks > 3)
            assert vm.steps == ["plug 0"]
            assert "no power of two" in plugger.status()["problem"]

    asyncio.run(scenario())


def test_same_wanted_windows_again_cost_no_question_to_the_vm() -> None:
    async def scenario() -> None:
        vm = FakeVm()
        async with hotplugged(vm) as plugger:
            plugger.want(plugs(0))
            await until(lambda: plugger.status()["plugged"] == [0])
            looks = vm.looks
            for _ in range(1000):
                plugger.want(plugs(0))
                await asyncio.sleep(0)
            assert vm.looks == looks

    asyncio.run(scenario())


def test_bug_of_ours_goes_to_the_loop_and_into_the_status() -> None:
    async def scenario() -> None:
        vm = FakeVm()
        failures: list[BaseException] = []
        asyncio.get_running_loop().set_exception_handler(
            lambda _, context: failures.append(context["exception"])
        )
        async with hotplugged(vm) as plugger:
            vm.have_a_bug()
            plugger.want(plugs(0))
            await until(lambda: bool(failures))
            assert "a bug of ours" in plugger.status()["problem"]

    asyncio.run(scenario())


@pytest.mark.parametrize(
    ("error", "told"),
    [
        (OSError(errno.EMFILE, "Too many open files"), "no descriptors are left"),
        (OSError(errno.ENOMEM, "Cannot allocate memory"), "Cannot allocate memory"),
        (PlugError("refuses to be looked at"), "refuses to be looked at"),
    ],
    ids=["descriptors", "memory", "refusal"],
)
def test_moment_in_which_the_vm_cannot_be_asked_passes(
    error: Exception, told: str
) -> None:
    """Also one in which a window is being unplugged."""

    async def scenario() -> None:
        problems: list[dict[str, object]] = []
        loop = asyncio.get_running_loop()
        loop.set_exception_handler(lambda _, context: problems.append(context))
        vm = FakeVm()
        async with hotplugged(vm) as plugger:
            plugger.want(plugs(0, 300))
            await until(lambda: vm.windows == {0, 300})
            vm.hang()
            plugger.want(plugs(0, 256))
            await until(lambda: vm.looks == 2)
            vm.fail(error)
            vm.wake_up()
            await until(lambda: told in plugger.status()["problem"])
            vm.fail(None)
            await until(lambda: vm.windows == {0, 256})
            vm.refuse_to_unplug(256)
            plugger.want(plugs(0))
            await until(lambda: vm.asked[256])
            vm.fail(error)
            await until(lambda: told in plugger.status()["problem"])
            vm.refuse_to_unplug()
            vm.fail(None)
            await until(lambda: vm.windows == {0})
            await until(lambda: not plugger.status()["problem"])
        assert problems == []

    asyncio.run(scenario())


def test_vm_that_starts_later_gets_all_wanted_windows(
    caplog: pytest.LogCaptureFixture,
) -> None:
    async def scenario() -> None:
        vm = FakeVm()
        vm.die()
        async with hotplugged(vm) as plugger:
            plugger.want(plugs(0, 256))
            await until(lambda: vm.looks > 3)
            assert plugger.status()["connected"] is False
            assert plugger.status()["problem"] == "waiting for the slave VM"
            vm.come_back()
            await until(lambda: plugger.status()["plugged"] == [0, 256])

    asyncio.run(scenario())
    warned = [r for r in caplog.records if r.levelno == logging.WARNING]
    assert len(warned) == 1


def test_windows_are_plugged_again_into_a_vm_that_was_restarted() -> None:
    async def scenario() -> None:
        vm = FakeVm()
        async with hotplugged(vm) as plugger:
            plugger.want(plugs(0))
            await until(lambda: plugger.status()["plugged"] == [0])
            vm.die()
            await until(lambda: plugger.status()["connected"] is False)
            assert plugger.status()["plugged"] == []
            vm.come_back()
            await until(lambda: vm.steps == ["plug 0", "plug 0"])

    asyncio.run(scenario())


def test_window_without_an_address_is_a_problem_until_it_has_one() -> None:
    async def scenario() -> None:
        vm = FakeVm()
        vm.without_address = {256}
        async with hotplugged(vm) as plugger:
            plugger.want(plugs(0, 256))
            await until(lambda: "window 256 an address" in plugger.status()["problem"])
            vm.without_address = set()
            await until(lambda: plugger.status()["problem"] == "")

    asyncio.run(scenario())


def test_reason_for_a_window_without_an_address_is_told_once() -> None:
    async def scenario() -> None:
        vm = FakeVm()
        vm.without_address, vm.why_no_address = {0, 256}, "its port is reserved"
        async with hotplugged(vm) as plugger:
            plugger.want(plugs(0, 256))
            told = "given window 0, 256 an address: its port is reserved"
            await until(lambda: plugger.status()["problem"].endswith(told))

    asyncio.run(scenario())


@pytest.mark.usefixtures("time_to_close")
def test_close_unplugs_all_windows() -> None:
    async def scenario() -> None:
        vm = FakeVm()
        async with hotplugged(vm) as plugger:
            plugger.want(plugs(0, 256))
            await until(lambda: vm.windows == {0, 256})
        assert vm.windows == set()

    asyncio.run(scenario())


def test_close_with_nothing_plugged_returns_at_once(time_to_close: float) -> None:
    async def scenario() -> None:
        vm = FakeVm()
        async with hotplugged(vm) as plugger:
            plugger.want(plugs(0))
            await until(lambda: vm.windows == {0})
            plugger.want(frozenset())
            await until(lambda: vm.windows == set())
            await asyncio.sleep(0.05)
            start = time.monotonic()
        assert time.monotonic() - start < time_to_close / 2

    asyncio.run(scenario())


@pytest.mark.parametrize("trouble", ["hangs", "holds on", "is away"])
def test_close_ends_in_time_even_if_the_vm_does_not_answer(trouble: str) -> None:
    async def scenario() -> None:
        vm = FakeVm()
        async with hotplugged(vm) as plugger:
            plugger.want(plugs(0))
            await until(lambda: vm.windows == {0})
            if trouble == "hangs":
                vm.hang()
            elif trouble == "holds on":
                vm.refuse_to_unplug(0)
            else:
                vm.die()
            start = time.monotonic()
        assert time.monotonic() - start < 10

    asyncio.run(scenario())


def test_nothing_is_plugged_after_close() -> None:
    async def scenario() -> None:
        vm = FakeVm()
        async with hotplugged(vm) as plugger:
            pass
        plugger.want(plugs(0))
        await asyncio.sleep(0.05)
        assert vm.steps == []

    asyncio.run(scenario())

# SPDX-License-Identifier: Apache-2.0
"""Windows are plugged over QMP, even if the QEMU refuses, hangs or ends."""

import asyncio
import errno
import logging
import socket
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest

from tests.fakes.qmp_server import GIB, MIB, FakeQemu
from tests.waiting import until
from vhostpci_host.hotplug import qmp_monitor, qmp_vm, reconciler
from vhostpci_host.hotplug.qmp_vm import QmpVm
from vhostpci_host.hotplug.reconciler import Reconciler
from vhostpci_host.hotplug.vm import PlugError, VmAway
from vhostpci_host.interfaces import Plug

WINDOW = Plug(window=300, socket=Path("/run/web.ivshmem.300"), vectors=1, size=2 * GIB)
METADATA = Plug(window=0, socket=Path("/run/web.ivshmem"), vectors=5, size=64 * 1024)


@pytest.fixture(autouse=True)
def short_pauses(monkeypatch: pytest.MonkeyPatch) -> None:
    for pause in ("FIRST_PAUSE", "LONGEST_PAUSE", "AWAY_PAUSE", "UNPLUG_EVERY"):
        monkeypatch.setattr(reconciler, pause, 0.01)


@pytest.fixture
def silent_qemu(monkeypatch: pytest.MonkeyPatch) -> None:
    """Shorten the time limits of QEMU: only for tests in which it never answers."""
    monkeypatch.setattr(qmp_monitor, "GREETING_TIME", 0.5)
    monkeypatch.setattr(qmp_monitor, "COMMAND_TIME", 0.5)


@pytest.fixture
def silent_guest(monkeypatch: pytest.MonkeyPatch) -> None:
    """Shorten the time limit of a guest that releases nothing, or does so unheard."""
    monkeypatch.setattr(qmp_vm, "GUEST_TIME", 0.5)


Scenario = Callable[[FakeQemu, QmpVm], Coroutine[Any, Any, None]]
Played = Callable[[Scenario], None]


@pytest.fixture
def play(tmp_path: Path) -> Played:
    """Run a scenario with a QEMU that has two root ports, and a `QmpVm` for it."""

    async def run(scenario: Scenario) -> None:
        async with FakeQemu(tmp_path / "qmp") as qemu:
            qemu.add_root_port("large", 4 * GIB)
            qemu.add_root_port("small", 2 * MIB)
            vm = QmpVm(qemu.path)
            try:
                async with asyncio.timeout(30):
                    await scenario(qemu, vm)
            finally:
                await vm.close()

    return lambda scenario: asyncio.run(run(scenario), debug=True)


async def error_of(work: Awaitable[object]) -> str:
    with pytest.raises(PlugError) as caught:
        await work
    return str(caught.value)


def test_window_is_a_chardev_and_a_device_in_the_port_that_fits_best(
    play: Played,
) -> None:
    async def scenario(qemu: FakeQemu, vm: QmpVm) -> None:
        await vm.plug("web", METADATA)
        await vm.plug("web", WINDOW)
        assert qemu.chardevs == {
            "vhostpci-web": "/run/web.ivshmem",
            "vhostpci.300.web": "/run/web.ivshmem.300",
        }
        assert qemu.devices == {
            "vhostpci-web-window": {
                "chardev": "vhostpci-web",
                "vectors": 5,
                "bus": "small",
            },
            "vhostpci.300.web-window": {
                "chardev": "vhostpci.300.web",
                "vectors": 1,
                "bus": "large",
            },
        }
        assert await vm.plugged("web") == {0, 300}

    play(scenario)


def test_windows_of_another_device_are_not_listed(play: Played) -> None:
    async def scenario(qemu: FakeQemu, vm: QmpVm) -> None:
        await vm.plug("web-300", METADATA)
        assert await vm.plugged("web") == set()

    play(scenario)


def test_two_devices_that_plug_at_once_get_a_port_each(play: Played) -> None:
    async def scenario(qemu: FakeQemu, vm: QmpVm) -> None:
        qemu.add_root_port("second", 4 * GIB)
        await asyncio.gather(vm.plug("a", WINDOW), vm.plug("b", WINDOW))
        assert {d["bus"] for d in qemu.devices.values()} == {"large", "second"}

    play(scenario)


def test_i440fx_needs_no_port(play: Played) -> None:
    async def scenario(qemu: FakeQemu, vm: QmpVm) -> None:
        qemu.root_ports.clear()
        qemu.machine = "pc-i440fx-10.0-machine"
        await vm.plug("web", WINDOW)
        assert "bus" not in qemu.devices["vhostpci.300.web-window"]

    play(scenario)


def test_lack_of_a_free_port_is_an_error_with_the_argument_to_add(play: Played) -> None:
    async def scenario(qemu: FakeQemu, vm: QmpVm) -> None:
        await vm.plug("other", WINDOW)
        text = await error_of(vm.plug("web", WINDOW))
        assert "no free root port for the 2G of window 300 (free: 2M)" in text
        assert "-device pcie-root-port,id=vp1," in text
        assert "pref64-reserve=4G" in text

    play(scenario)


def test_port_whose_hot_plug_is_off_is_left_alone(play: Played) -> None:
    async def scenario(qemu: FakeQemu, vm: QmpVm) -> None:
        qemu.fixed.add("small")
        await vm.plug("web", METADATA)
        assert qemu.devices["vhostpci-web-window"]["bus"] == "large"

    play(scenario)


def test_plug_fails_until_the_firmware_has_run(play: Played) -> None:
    async def scenario(qemu: FakeQemu, vm: QmpVm) -> None:
        for name in qemu.root_ports:
            qemu.root_ports[name] = (0xFFF00000, 0xFFFFF)
        assert "firmware" in await error_of(vm.plug("web", METADATA))

    play(scenario)


def test_device_that_is_refused_leaves_no_chardev(play: Played) -> None:
    async def scenario(qemu: FakeQemu, vm: QmpVm) -> None:
        qemu.refuse("device_add", "no memory")
        text = await error_of(vm.plug("web", METADATA))
        assert text.endswith("refuses device_add: no memory")
        assert qemu.chardevs == {}

    play(scenario)


def test_socket_that_qemu_may_not_open_is_an_error_with_the_option(
    play: Played,
) -> None:
    async def scenario(qemu: FakeQemu, vm: QmpVm) -> None:
        qemu.refuse("chardev-add", "Failed to connect to '/run/x': Permission denied")
        assert "--socket-group" in await error_of(vm.plug("web", METADATA))

    play(scenario)


def test_chardev_without_a_device_is_found_and_removed(play: Played) -> None:
    async def scenario(qemu: FakeQemu, vm: QmpVm) -> None:
        qemu.chardevs["vhostpci.301.web"] = "/run/web.ivshmem.301"
        assert await vm.plugged("web") == {301}
        await vm.unplug("web", 301)
        assert await vm.plugged("web") == set()

    play(scenario)


def test_unplug_returns_when_the_guest_has_released_the_device(play: Played) -> None:
    async def scenario(qemu: FakeQemu, vm: QmpVm) -> None:
        qemu.ignore_unplugs()
        await vm.plug("web", METADATA)
        unplug = asyncio.create_task(vm.unplug("web", 0))
        await until(lambda: qemu.asked["vhostpci-web-window"] == 1)
        assert not unplug.done()
        qemu.release_devices()
        await unplug
        assert qemu.chardevs == {}

    play(scenario)


@pytest.mark.usefixtures("silent_guest")
@pytest.mark.parametrize("answer", [FakeQemu.ignore_unplugs, FakeQemu.refuse_unplugs])
def test_guest_that_does_not_release_a_device_is_an_error_and_is_asked_again(
    play: Played, answer: Callable[[FakeQemu], None]
) -> None:
    async def scenario(qemu: FakeQemu, vm: QmpVm) -> None:
        await vm.plug("web", METADATA)
        answer(qemu)
        text = await error_of(vm.unplug("web", 0))
        assert "does not release vhostpci-web-window" in text
        assert "no new one is plugged until it has" in text
        text = await error_of(vm.unplug("web", 0))
        assert "does not release vhostpci-web-window" in text
        assert qemu.asked["vhostpci-web-window"] == 2
        qemu.answer_again()
        qemu.release_devices()
        await vm.unplug("web", 0)
        assert await vm.plugged("web") == set()

    play(scenario)


@pytest.mark.usefixtures("silent_guest")
def test_unplug_succeeds_although_the_event_was_lost(play: Played) -> None:
    async def scenario(qemu: FakeQemu, vm: QmpVm) -> None:
        await vm.plug("web", METADATA)
        qemu.lose_events()
        await vm.unplug("web", 0)
        assert await vm.plugged("web") == set()

    play(scenario)


def test_device_of_the_command_line_cannot_be_unplugged(play: Played) -> None:
    async def scenario(qemu: FakeQemu, vm: QmpVm) -> None:
        await vm.plug("web", METADATA)
        qemu.refuse("device_del", "Bus 'pcie.0' does not support hotplugging")
        assert "command line, leave it out" in await error_of(vm.unplug("web", 0))

    play(scenario)


def test_window_without_an_address_is_found(play: Played) -> None:
    async def scenario(qemu: FakeQemu, vm: QmpVm) -> None:
        await vm.plug("web", WINDOW)
        assert await vm.unassigned("web") == {}
        qemu.addresses = False
        assert await vm.unassigned("web") == {300: ""}
        assert await vm.unassigned("other") == {}

    play(scenario)


def test_answer_about_kvm_that_is_not_qemus_is_refused(play: Played) -> None:
    async def scenario(qemu: FakeQemu, vm: QmpVm) -> None:
        await vm.plug("web", METADATA)
        qemu.answer_nonsense("query-kvm")
        text = await error_of(vm.unplug("web", 0))
        assert "answers query-kvm in a way" in text

    play(scenario)


@pytest.mark.parametrize("command", ["query-pci", "qom-list", "query-chardev"])
def test_answer_that_is_not_qemus_is_refused(play: Played, command: str) -> None:
    async def scenario(qemu: FakeQemu, vm: QmpVm) -> None:
        await vm.plug("web", METADATA)
        qemu.answer_nonsense(command)
        ask = vm.unassigned("web") if command == "query-pci" else vm.plugged("web")
        text = await error_of(ask)
        assert f"answers {command} in a way" in text

    play(scenario)


def test_vm_that_ends_is_noticed(play: Played) -> None:
    async def scenario(qemu: FakeQemu, vm: QmpVm) -> None:
        await vm.plugged("web")
        gone = asyncio.create_task(vm.gone())
        await asyncio.sleep(0.01)
        assert not gone.done()
        await qemu.die()
        await gone
        text = await error_of(vm.plugged("web"))
        assert f"waiting for the slave VM at {qemu.path}: start its QEMU" in text
        await qemu.start()
        assert await vm.plugged("web") == set()

    play(scenario)


def test_vm_that_ends_while_its_guest_is_waited_for_is_away(play: Played) -> None:
    async def scenario(qemu: FakeQemu, vm: QmpVm) -> None:
        await vm.plug("web", METADATA)
        qemu.ignore_unplugs()
        unplug = asyncio.create_task(vm.unplug("web", 0))
        await until(lambda: qemu.asked["vhostpci-web-window"] == 1)
        await qemu.die()
        with pytest.raises(VmAway):
            await unplug

    play(scenario)


def test_vm_that_ends_in_a_command_is_away(play: Played) -> None:
    async def scenario(qemu: FakeQemu, vm: QmpVm) -> None:
        qemu.never_answer("device_add")
        plug = asyncio.create_task(vm.plug("web", METADATA))
        await until(lambda: "device_add" in qemu.commands)
        await qemu.die()
        with pytest.raises(VmAway):
            await plug

    play(scenario)


@pytest.mark.usefixtures("silent_qemu")
def test_command_without_an_answer_ends_the_connection(
    play: Played,
) -> None:
    async def scenario(qemu: FakeQemu, vm: QmpVm) -> None:
        qemu.never_answer("device_add")
        text = await error_of(vm.plug("web", METADATA))
        assert "has not answered device_add" in text
        qemu.answer_again()
        assert await vm.plugged("web") == {0}
        assert qemu.clients == 2

    play(scenario)


@pytest.mark.usefixtures("silent_qemu")
def test_all_devices_give_up_together_on_a_socket_that_never_greets(
    play: Played,
) -> None:
    async def scenario(qemu: FakeQemu, vm: QmpVm) -> None:
        qemu.never_greet()
        start = time.monotonic()
        texts = await asyncio.gather(*(error_of(vm.plugged(n)) for n in "abcdefgh"))
        # One after the other, the eight would need eight times that long.
        assert time.monotonic() - start < 7 * qmp_monitor.GREETING_TIME
        assert all("serves one client at a time" in text for text in texts)

    play(scenario)


def test_devices_share_one_connection(play: Played) -> None:
    async def scenario(qemu: FakeQemu, vm: QmpVm) -> None:
        await asyncio.gather(*(vm.plugged(name) for name in "abcdefgh"))
        assert qemu.clients == 1

    play(scenario)


@pytest.mark.parametrize("said", [b"hello\r\n", b'{"QMP": 3}\r\n', b""])
def test_socket_that_does_not_speak_qmp_is_an_error(
    tmp_path: Path, said: bytes
) -> None:
    async def other(_: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(said)
        writer.close()

    async def scenario() -> None:
        async with await asyncio.start_unix_server(other, tmp_path / "qmp"):
            vm = QmpVm(tmp_path / "qmp")
            assert "does not answer as one" in await error_of(vm.plugged("web"))
            await vm.close()

    asyncio.run(scenario())


def test_lack_of_a_descriptor_is_told_and_passes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: object) -> socket.socket:
        raise OSError(errno.EMFILE, "Too many open files")

    with monkeypatch.context() as patched:
        patched.setattr(socket, "socket", refuse)
        with pytest.raises(VmAway, match="no descriptors are left"):
            qmp_monitor._connect(tmp_path / "qmp")


def test_socket_whose_queue_is_full_is_an_error(tmp_path: Path) -> None:
    async def scenario() -> None:
        vm = QmpVm(tmp_path / "qmp")
        said = await error_of(vm.plugged("web"))
        assert "its QEMU hangs, or other clients wait there" in said
        await vm.close()

    with (
        socket.socket(socket.AF_UNIX) as listener,
        socket.socket(socket.AF_UNIX) as first,
    ):
        listener.bind(str(tmp_path / "qmp"))
        listener.listen(0)
        first.connect(str(tmp_path / "qmp"))
        asyncio.run(scenario())


@pytest.mark.parametrize("moment", ["greeting", "command", "unplug"])
def test_cancelled_call_leaves_a_vm_that_can_be_closed(
    play: Played, moment: str
) -> None:
    async def scenario(qemu: FakeQemu, vm: QmpVm) -> None:
        if moment == "greeting":
            qemu.never_greet()
        elif moment == "command":
            qemu.never_answer("query-chardev")
        else:
            await vm.plug("web", METADATA)
            qemu.ignore_unplugs()
        task = asyncio.create_task(vm.unplug("web", 0))
        await asyncio.sleep(0.05)
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)

    play(scenario)


@asynccontextmanager
async def hotplugged(vm: QmpVm) -> AsyncIterator[Reconciler]:
    plugger = Reconciler("web", "/run/slave.qmp", vm, vm.close)
    try:
        yield plugger
    finally:
        await plugger.close()


def test_whole_life_of_a_device(play: Played) -> None:
    async def scenario(qemu: FakeQemu, vm: QmpVm) -> None:
        async with hotplugged(vm) as plugger:
            plugger.want(frozenset({METADATA, WINDOW}))
            await until(lambda: plugger.status()["plugged"] == [0, 300])
            await qemu.die()
            await until(lambda: not plugger.status()["connected"])
            await qemu.start()
            await until(lambda: plugger.status()["plugged"] == [0, 300])
            plugger.want(frozenset())
            await until(lambda: not qemu.chardevs)

    play(scenario)


@pytest.mark.usefixtures("silent_qemu")
def test_qemu_that_stops_answering_is_logged_once(
    play: Played, caplog: pytest.LogCaptureFixture
) -> None:
    async def scenario(qemu: FakeQemu, vm: QmpVm) -> None:
        qemu.never_greet()
        async with hotplugged(vm) as plugger:
            plugger.want(frozenset({METADATA}))
            await until(lambda: qemu.clients >= 3)

    play(scenario)
    # Only ours: on a busy machine asyncio's debug mode warns of slow callbacks.
    ours = [r for r in caplog.records if r.name == reconciler.log.name]
    assert [r.levelno for r in ours].count(logging.WARNING) == 1


def test_eventfds_that_qemu_goes_on_watching_are_cleared(play: Played) -> None:
    async def scenario(qemu: FakeQemu, vm: QmpVm) -> None:
        qemu.lack_kvm()
        await vm.plug("web", METADATA)
        await vm.unplug("web", 0)
        assert qemu.watched == 0

    play(scenario)


@pytest.mark.usefixtures("silent_guest")
def test_eventfds_of_a_late_unplug_are_cleared_before_the_next_plug(
    play: Played,
) -> None:
    async def scenario(qemu: FakeQemu, vm: QmpVm) -> None:
        qemu.lack_kvm()
        await vm.plug("web", METADATA)
        qemu.ignore_unplugs()
        await error_of(vm.unplug("web", 0))
        qemu.release_devices()
        assert qemu.watched == 5
        await vm.plug("web", WINDOW)
        assert qemu.watched == 0

    play(scenario)


def test_with_kvm_there_is_nothing_to_clear(play: Played) -> None:
    async def scenario(qemu: FakeQemu, vm: QmpVm) -> None:
        await vm.plug("web", METADATA)
        await vm.unplug("web", 0)
        assert "getfd" not in qemu.commands

    play(scenario)

# SPDX-License-Identifier: Apache-2.0
"""A libvirt domain as the slave VM: our commands to virsh, and its answers."""

import asyncio
import errno
import os
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import TypeVar

import pytest

from tests.fakes.libvirt import FakeLibvirt
from tests.waiting import TIMEOUT, until
from vhostpci_host.hotplug import libvirt_vm
from vhostpci_host.hotplug.libvirt_vm import LibvirtVm
from vhostpci_host.hotplug.virsh import Virsh
from vhostpci_host.hotplug.vm import PlugError, VmAway
from vhostpci_host.interfaces import Plug

T = TypeVar("T")

WINDOW = Plug(window=300, socket=Path("/run/web.ivshmem.300"), vectors=1, size=2**30)
METADATA = Plug(window=0, socket=Path("/run/web.ivshmem"), vectors=3, size=2**20)


@pytest.fixture
def virsh(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> FakeLibvirt:
    """A fake virsh, first in PATH, with a domain that runs."""
    fake = FakeLibvirt(tmp_path)
    monkeypatch.setenv("PATH", f"{fake.bin}:{os.environ['PATH']}")
    monkeypatch.setattr(libvirt_vm, "UNPLUG_TIME", 0.2)
    monkeypatch.setattr(libvirt_vm, "UNPLUG_LOOK", 0.05)
    monkeypatch.setattr(libvirt_vm, "EVENT_LOOK", 0.05)
    # An event that is missed would be noticed after this time.
    monkeypatch.setattr(libvirt_vm, "WATCH_TIME", round(10 * TIMEOUT))
    fake.start()
    return fake


def ask(work: Callable[[LibvirtVm], Awaitable[T]], answer_time: float = 10) -> T:
    """Run `work` with the slave VM, and return its result."""

    async def run() -> T:
        vm = LibvirtVm("switch", Virsh("test:///x", answer_time=answer_time))
        try:
            return await work(vm)
        finally:
            await vm.close()

    return asyncio.run(run())


def plug(*plugs: Plug, device: str = "web") -> None:
    async def work(vm: LibvirtVm) -> None:
        for one in plugs:
            await vm.plug(device, one)

    ask(work)


def buses(virsh: FakeLibvirt) -> list[str]:
    """Return the buses of the windows, in the order in which they were plugged."""
    places = [shmem.find("address") for shmem in virsh.shmems()]
    return [place.get("bus", "") for place in places if place is not None]


def test_every_command_goes_to_the_given_libvirt_and_domain(
    virsh: FakeLibvirt,
) -> None:
    plug(WINDOW)
    assert {tuple(words[:3]) for words in virsh.calls()} == {("-q", "-c", "test:///x")}
    assert virsh.asked("attach-device", "--domain") == ["switch"]


def test_libvirt_is_the_systems_unless_the_environment_names_another(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.delenv("LIBVIRT_DEFAULT_URI", raising=False)
    assert Virsh().uri == "qemu:///system"
    monkeypatch.setenv("LIBVIRT_DEFAULT_URI", "qemu:///session")
    assert Virsh().uri == "qemu:///session"


def test_window_that_was_plugged_is_listed_and_can_be_unplugged(
    virsh: FakeLibvirt,
) -> None:
    virsh.start({2: 2**30, 3: 2**30})

    async def work(vm: LibvirtVm) -> list[set[int]]:
        found = [await vm.plugged("web")]
        await vm.plug("web", WINDOW)
        await vm.plug("web", METADATA)
        found.append(await vm.plugged("web"))
        await vm.unplug("web", 300)
        return [*found, await vm.plugged("web")]

    assert ask(work) == [set(), {0, 300}, {0}]


def test_windows_of_another_device_are_not_listed(virsh: FakeLibvirt) -> None:
    plug(WINDOW, device="db")
    assert ask(lambda vm: vm.plugged("web")) == set()


def test_window_goes_to_the_smallest_port_with_room_for_it(virsh: FakeLibvirt) -> None:
    virsh.start({2: 2**34, 3: 2**30, 4: 2**29})
    plug(WINDOW)
    assert buses(virsh) == ["0x03"]


def test_no_two_windows_go_to_one_port(virsh: FakeLibvirt) -> None:
    virsh.start({2: 2**30, 3: 2**30})

    async def work(vm: LibvirtVm) -> None:
        await asyncio.gather(vm.plug("web", WINDOW), vm.plug("db", WINDOW))

    ask(work)
    assert sorted(buses(virsh)) == ["0x02", "0x03"]


@pytest.mark.parametrize(
    ("shares", "hotplug", "free"),
    [({}, "on", "none"), ({2: 2**30}, "off", "none"), ({2: 2**29}, "on", "512M")],
    ids=["no port", "a port without hot-plug", "too small"],
)
def test_window_without_a_free_port_is_refused_with_what_to_add(
    virsh: FakeLibvirt, shares: dict[int, int], hotplug: str, free: str
) -> None:
    virsh.start(shares, hotplug=hotplug)
    with pytest.raises(PlugError) as caught:
        plug(WINDOW)
    assert "no free pcie-root-port for the 1G of window 300" in str(caught.value)
    assert f"(free: {free})" in str(caught.value)
    assert "add one with pref64-reserve=2G to its XML (virsh edit switch)" in str(
        caught.value
    )
    assert virsh.shmems() == []


def test_plug_waits_until_the_firmware_has_run(virsh: FakeLibvirt) -> None:
    virsh.set_up_nothing()
    with pytest.raises(PlugError, match="firmware of domain 'switch' has not set up"):
        plug(WINDOW)


@pytest.mark.parametrize(
    "text", ["no JSON", "[]", '{"error": {}}', '{"return": [{"devices": 5}]}']
)
def test_nonsense_from_qemu_is_an_error(virsh: FakeLibvirt, text: str) -> None:
    virsh.answer_monitor(text)
    with pytest.raises(PlugError, match=r"QEMU of domain 'switch' .* not understand"):
        plug(WINDOW)


def test_refused_plug_is_reported_in_libvirts_words(virsh: FakeLibvirt) -> None:
    virsh.refuse(
        "attach-device",
        "error: Failed to attach device from /dev/fd/7\nerror: internal error: no\n\n",
    )
    with pytest.raises(PlugError) as caught:
        plug(WINDOW)
    text = "libvirt does not plug window 300 into domain 'switch': internal error: no"
    assert str(caught.value) == text


def test_socket_that_qemu_may_not_use_is_reported_with_the_option(
    virsh: FakeLibvirt,
) -> None:
    virsh.refuse(
        "attach-device", "error: Failed to do so\nerror: x: Permission denied\n"
    )
    with pytest.raises(PlugError, match=r"reach /run/web.ivshmem.300 .--socket-group"):
        plug(WINDOW)


def test_window_that_is_not_plugged_is_unplugged_at_once(virsh: FakeLibvirt) -> None:
    ask(lambda vm: vm.unplug("web", 300))
    assert virsh.asked("detach-device-alias", "--alias") == []


def test_with_kvm_nothing_is_cleared_after_an_unplug(virsh: FakeLibvirt) -> None:
    plug(WINDOW)
    ask(lambda vm: vm.unplug("web", 300))
    assert virsh.executed("netdev_add") == []


def test_qemu_without_kvm_is_cleared_of_what_an_unplug_leaves(
    virsh: FakeLibvirt,
) -> None:
    virsh.start(kind="qemu")
    plug(WINDOW)
    ask(lambda vm: vm.unplug("web", 300))
    handed = [one["fdname"] for one in virsh.executed("getfd")]
    assert len(handed) >= 16
    assert [one["fd"] for one in virsh.executed("netdev_add")] == handed
    assert [one["id"] for one in virsh.executed("netdev_del")] == handed


def test_command_that_qemu_refuses_is_reported_in_its_words(virsh: FakeLibvirt) -> None:
    virsh.answer_monitor('{"error": {"class": "GenericError", "desc": "not now"}}')
    with pytest.raises(PlugError, match="refuses query-pci: not now"):
        plug(WINDOW)


def test_guest_that_does_not_release_a_window_is_an_error_and_is_asked_again(
    virsh: FakeLibvirt,
) -> None:
    plug(WINDOW)
    virsh.ignore_unplugs()
    with pytest.raises(PlugError, match="'switch' has not released window 300"):
        ask(lambda vm: vm.unplug("web", 300))
    virsh.refuse(
        "detach-device-alias",
        "error: Device shmem0 is already in the process of unplug\n",
    )
    with pytest.raises(PlugError, match="has not released"):
        ask(lambda vm: vm.unplug("web", 300))
    virsh.release_devices()
    ask(lambda vm: vm.unplug("web", 300))


def test_refused_unplug_is_reported_in_libvirts_words(virsh: FakeLibvirt) -> None:
    plug(WINDOW)
    virsh.refuse("detach-device-alias", "error: Failed to do so\nerror: it is busy\n")
    with pytest.raises(PlugError, match=r"unplug window 300 .*: it is busy"):
        ask(lambda vm: vm.unplug("web", 300))


def test_domain_that_does_not_run_is_away(virsh: FakeLibvirt) -> None:
    virsh.shut_off()
    with pytest.raises(VmAway, match="waiting for domain 'switch'"):
        ask(lambda vm: vm.plugged("web"))


@pytest.mark.parametrize(
    "text", ["", "<domain", "Domain 'x'"], ids=["nothing", "half", "no XML"]
)
def test_domain_that_cannot_be_read_is_away(virsh: FakeLibvirt, text: str) -> None:
    virsh.say(text)
    with pytest.raises(
        VmAway, match="cannot read domain 'switch' of libvirt at test:///x"
    ):
        ask(lambda vm: vm.plugged("web"))


def test_missing_domain_is_named(virsh: FakeLibvirt) -> None:
    virsh.refuse("dumpxml", "error: failed to get domain 'switch'\n")
    with pytest.raises(VmAway, match="failed to get domain 'switch'; give a name"):
        ask(lambda vm: vm.plugged("web"))


def test_libvirt_that_does_not_run_is_an_error_with_what_to_start(
    virsh: FakeLibvirt,
) -> None:
    virsh.refuse(
        "dumpxml",
        "error: failed to connect to the hypervisor\n"
        "error: Failed to connect socket to '/run/x': No such file or directory\n",
    )
    with pytest.raises(VmAway, match=r"test:///x does not answer: .*/run/x.*libvirtd"):
        ask(lambda vm: vm.plugged("web"))


@pytest.mark.parametrize("command", ["dumpxml", "attach-device"])
def test_libvirt_that_hangs_is_given_up_after_the_time_limit(
    virsh: FakeLibvirt, monkeypatch: pytest.MonkeyPatch, command: str
) -> None:
    monkeypatch.setattr(libvirt_vm, "PLUG_TIME", 0)
    virsh.hang(command)
    with pytest.raises(VmAway, match="does not answer within 1 s"):
        ask(lambda vm: vm.plug("web", WINDOW), answer_time=1)


def test_cancelled_question_leaves_no_virsh_process(virsh: FakeLibvirt) -> None:
    virsh.hang("dumpxml")

    async def work(vm: LibvirtVm) -> None:
        question = asyncio.create_task(vm.plugged("web"))
        while not virsh.calls():
            await asyncio.sleep(0.01)
        question.cancel()
        await asyncio.wait([question])
        with pytest.raises(ChildProcessError):
            os.waitpid(-1, os.WNOHANG)

    ask(work)


def test_missing_virsh_is_an_error_with_the_package_to_install(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(VmAway, match=r"cannot run virsh: .*libvirt-clients"):
        ask(lambda vm: vm.plugged("web"))


def test_lack_of_a_descriptor_is_told_and_passes(
    virsh: FakeLibvirt, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(_: str) -> int:
        raise OSError(errno.EMFILE, "Too many open files")

    with monkeypatch.context() as patched:
        patched.setattr(os, "memfd_create", refuse)
        with pytest.raises(VmAway, match="cannot run virsh: no descriptors are left"):
            ask(lambda vm: vm.plugged("web"))
    assert ask(lambda vm: vm.plugged("web")) == set()


def test_many_devices_ask_once_for_a_domain_that_is_away(
    virsh: FakeLibvirt,
) -> None:
    virsh.shut_off()

    async def work(vm: LibvirtVm) -> list[object]:
        looks = [vm.plugged(f"web{i}") for i in range(5)]
        return [*await asyncio.gather(*looks, return_exceptions=True)]

    assert all(isinstance(one, VmAway) for one in ask(work))
    assert len(virsh.calls()) == 1


def test_domain_that_starts_is_found(
    virsh: FakeLibvirt, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(libvirt_vm, "AWAY_TIME", 0)
    virsh.shut_off()

    async def work(vm: LibvirtVm) -> set[int]:
        with pytest.raises(VmAway):
            await vm.plugged("web")
        virsh.start()
        return await vm.plugged("web")

    assert ask(work) == set()


def test_end_of_the_domain_is_noticed(virsh: FakeLibvirt) -> None:
    async def work(vm: LibvirtVm) -> None:
        await vm.plugged("web")
        gone = [asyncio.create_task(vm.gone()) for _ in range(3)]
        await until(lambda: bool(virsh.asked("event", "--domain")))
        assert not any(one.done() for one in gone)
        virsh.shut_off()
        await asyncio.wait_for(asyncio.gather(*gone), TIMEOUT)

    ask(work)
    assert len(virsh.asked("event", "--domain")) == 1


def test_domain_that_was_restarted_counts_as_another(virsh: FakeLibvirt) -> None:
    async def work(vm: LibvirtVm) -> None:
        await vm.plugged("web")
        virsh.start(run=2)
        await asyncio.wait_for(vm.gone(), TIMEOUT)

    ask(work)


def test_wait_for_the_end_of_a_domain_that_is_away_returns_at_once(
    virsh: FakeLibvirt,
) -> None:
    virsh.shut_off()

    async def work(vm: LibvirtVm) -> None:
        with pytest.raises(VmAway):
            await vm.plugged("web")
        await asyncio.wait_for(vm.gone(), 1)

    ask(work)


def test_window_without_an_address_is_known(virsh: FakeLibvirt) -> None:
    plug(WINDOW)
    assert ask(lambda vm: vm.unassigned("web")) == {}
    virsh.give_no_addresses()
    assert ask(lambda vm: vm.unassigned("web")) == {300: ""}
    assert ask(lambda vm: vm.unassigned("db")) == {}

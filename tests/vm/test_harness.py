# SPDX-License-Identifier: Apache-2.0
"""What the other tests rely on: one VM without a network card, and commands in it.

guest  --- virtio-serial --- Vm
"""

import signal
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.vm import image
from tests.vm.channel import GuestError, GuestGoneError
from tests.vm.harness import Vm

pytestmark = pytest.mark.vm


@pytest.fixture(scope="module")
def vm(logs: Path) -> Iterator[Vm]:
    """A guest that takes commands."""
    with Vm("harness", image.build(), logs=logs) as vm:
        vm.wait_ready()
        yield vm


def test_a_command_returns_what_it_wrote_and_its_status(vm: Vm) -> None:
    result = vm.run("echo out; echo err >&2; exit 3", check=False)
    assert (result.rc, result.stdout, result.stderr) == (3, "out\n", "err\n")


def test_a_failed_command_is_an_error_with_its_output(vm: Vm) -> None:
    with pytest.raises(GuestError, match=r"returned 1\nreason"):
        vm.run("echo reason; exit 1")


def test_a_command_that_takes_too_long_is_killed(vm: Vm) -> None:
    with pytest.raises(GuestError, match="took too long"):
        vm.run(["sleep", "60"], timeout=0.5)


def test_a_background_job_runs_beside_others_until_it_is_stopped(vm: Vm) -> None:
    job = vm.spawn("echo started; exec sleep 60")
    vm.wait_until(lambda: job.output() == "started\n", lambda: "its first line")
    vm.run("true")
    assert job.poll() is None
    assert job.stop() == -signal.SIGTERM
    assert job.output() == "started\n"


def test_a_file_comes_back_as_it_was_put(vm: Vm) -> None:
    data = bytes(range(256)) * 400
    vm.put("/tmp/some/file", data)
    assert vm.get("/tmp/some/file") == data


def test_the_monitor_answers(vm: Vm) -> None:
    assert vm.qmp("query-status")["status"] == "running"


def test_the_guest_takes_commands_again_after_a_reboot(vm: Vm) -> None:
    vm.run("touch /tmp/before")
    vm.reboot()
    assert vm.run("test -e /tmp/before", check=False).rc == 1


def test_a_panic_fails_what_was_under_way(vm: Vm) -> None:
    with pytest.raises(GuestGoneError, match="rebooted"):
        vm.run("echo c > /proc/sysrq-trigger; sleep 60", timeout=90)
    vm.wait_ready()


def test_a_qemu_that_ends_fails_what_was_under_way(vm: Vm) -> None:
    with pytest.raises(GuestGoneError, match="QEMU ended"):
        vm.run("poweroff -f; sleep 60", timeout=90)
    assert vm.wait_end(timeout=10)

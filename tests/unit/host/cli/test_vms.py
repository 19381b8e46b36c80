# SPDX-License-Identifier: Apache-2.0
"""What the command line finds out of the processes that a daemon names."""

import json
import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack

import pytest

from tests.waiting import wait_for
from vhostpci_host.cli import vms

SOCKET = "/run/vhostpci/web,1.vhost-user"
QEMU = (
    *("-name", "guest=web,,1,debug-threads=on"),
    *("-chardev", "socket,id=c0,path=/run/other"),
    *("-chardev", "socket,id=c1,path=/run/vhostpci/web,,1.vhost-user,reconnect=1"),
    *("-netdev", "vhost-user,id=n0,chardev=c0"),
    *("-netdev", "type=vhost-user,id=n1,chardev=c1"),
    *("-device", "virtio-net-pci,netdev=n0,mac=52:54:00:00:00:01"),
    *("-device", "virtio-net-pci,netdev=n1,mac=52:54:00:00:00:02"),
)
LIBVIRT = (
    *("-name", "guest=fw,debug-threads=on"),
    "-chardev",
    json.dumps({"id": "c1", "backend": {"data": {"addr": {"path": SOCKET}}}}),
    *("-netdev", json.dumps({"type": "vhost-user", "chardev": "c1", "id": "n1"})),
    *("-device", json.dumps({"driver": "virtio-net-pci", "netdev": "n1", "mac": "m"})),
)

Start = Callable[..., int]


@pytest.fixture
def start() -> Iterator[Start]:
    """Start a process with arguments of QEMU's; return its PID."""
    with ExitStack() as undo:

        def begin(*arguments: str) -> int:
            words = [sys.executable, "-c", "input()", *arguments]
            process = subprocess.Popen(words, stdin=subprocess.PIPE)
            undo.enter_context(process)
            undo.callback(process.kill)
            wait_for(
                lambda: len(vms.look(process.pid).words) > len(arguments),
                "the process has its command line",
            )
            return process.pid

        yield begin


@pytest.mark.parametrize(
    ("words", "name", "mac"),
    [(QEMU, "web,1", "52:54:00:00:00:02"), (LIBVIRT, "fw", "m")],
    ids=["qemu", "libvirt"],
)
def test_vm_has_the_name_and_the_card_of_its_command_line(
    start: Start, words: tuple[str, ...], name: str, mac: str
) -> None:
    vm = vms.look(start(*words))
    assert vm.name == name
    assert vm.mac(SOCKET) == mac
    assert vm.mac("/run/none") is None
    assert vm.started is not None
    assert abs(vm.started - time.time()) < 60


def test_other_process_has_the_name_of_its_program() -> None:
    assert vms.look(os.getpid()).name is not None


@pytest.mark.parametrize("pid", [None, 0, 2**22 + 1])
def test_process_that_is_not_here_has_no_name(pid: int | None) -> None:
    assert vms.look(pid) == vms.Vm()


@pytest.mark.parametrize(
    "words",
    [
        ("-name",),
        ("-name", ""),
        ("-chardev", "{", "-netdev", "[]", "-device", '{"netdev": [1], "mac": 5}'),
        ("-chardev", '{"id": [], "path": "s"}', "-device", '{"id": 5}'),
        ("-netdev", '{"chardev": []}', "-device", ",,,=,="),
        ("-chardev", '{"backend": {"data": 5}}'),
    ],
)
def test_strange_command_line_names_nothing(words: tuple[str, ...]) -> None:
    assert vms.Vm("x", None, words).mac("s") is None


def test_status_and_list_have_what_was_found() -> None:
    pid = os.getpid()
    status = vms.add_to({"master": {"pid": pid}, "slave": None})
    assert status["master"]["name"]
    assert status["master"]["mac"] is None
    assert vms.add_to({"state": "failed"}) == {"state": "failed"}
    row = vms.add_names({"master_pid": None, "slave_pid": pid})
    assert (row["master_name"], bool(row["slave_name"])) == (None, True)

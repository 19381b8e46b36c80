# SPDX-License-Identifier: Apache-2.0
"""The README's first daemon, and the service that its next commands make of it.

this machine                          a machine that systemd has booted
FrontEnd (a master's QEMU) ────────────► vhostpci-host run; vhostpci-host.service
SlaveClient (a slave's QEMU) ──────────►
"""

import os
import subprocess
from collections.abc import Iterator
from contextlib import ExitStack, closing, contextmanager

import pytest

from tests.fakes.frontend import FrontEnd, RingAt, Socket, region
from tests.fakes.slave_client import SlaveClient
from tests.install import readme
from tests.process.systemd_machine import Machine, machine
from tests.vm.image import CHECKOUT
from tests.waiting import wait_for, when_listening
from vhostpci_shared.vhost_user import Request

pytestmark = pytest.mark.process

RAM = 1 << 30
RUN_DIR = "/run/vhostpci"
ARENA = "/dev/shm/vhostpci/net0"
UNIT = "vhostpci-host"


@pytest.fixture(params=["bookworm", "trixie"])
def booted(request: pytest.FixtureRequest) -> Iterator[Machine]:
    """A machine with a checkout, but for what is installed there."""
    units = (CHECKOUT / "host/systemd").iterdir()
    sources = {f"/root/host/systemd/{unit.name}": unit.read_text() for unit in units}
    with machine(request.param, sources) as booted:
        yield booted


@contextmanager
def master_connected(booted: Machine, memory: int) -> Iterator[FrontEnd]:
    """A master whose RAM is this file."""
    path = booted.path(f"{RUN_DIR}/net0.vhost-user")
    transport = when_listening(lambda: Socket(path))
    with FrontEnd(transport, [(region(RAM), memory)]) as master:
        master.connect()
        master.driver_ok([RingAt.nth(0), RingAt.nth(1)])
        yield master


@contextmanager
def first_daemon(booted: Machine) -> Iterator[None]:
    """The daemon that the README has run in the foreground."""
    *_, command = readme.commands("README.md", "**1. On the hypervisor**")
    with subprocess.Popen(booted.command(*command.split())):
        socket = booted.path(f"{RUN_DIR}/net0.ivshmem")
        arena = booted.path(ARENA)
        wait_for(lambda: arena.exists() and socket.is_socket(), lambda: command)
        try:
            yield
        finally:
            # In the machine's own PID namespace: nsenter passes no signal on.
            booted.run("pkill", "-INT", "-f", command)


def test_service_takes_the_place_of_the_first_daemon(booted: Machine) -> None:
    """The master, which runs on with its memory, has the service as its back-end."""
    with ExitStack() as stack:
        with first_daemon(booted):
            memory = os.open(booted.path(ARENA), os.O_RDWR)
            stack.callback(os.close, memory)
            with master_connected(booted, memory):
                pass
        script = readme.script("README.md", "With these commands, as root")
        booted.run("sh", "-c", f"cd /root\n{script}")
        assert booted.run("systemctl", "is-enabled", UNIT) == "enabled\n"
        slave = stack.enter_context(
            closing(SlaveClient(booted.path(f"{RUN_DIR}/net0.ivshmem")))
        )
        slave.handshake(3)
        master = stack.enter_context(master_connected(booted, memory))
        slave.catch_up()
        master.ask(Request.GET_FEATURES)
        master.kick(1)
        assert slave.interrupted(2)

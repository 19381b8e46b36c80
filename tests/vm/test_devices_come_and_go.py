# SPDX-License-Identifier: Apache-2.0
"""Devices and windows that are plugged into a running slave VM, and pulled out.

 test (ivshmem server, metadata)             slave
window 0, window 4711 --- QMP --- root ports --- vhostpci-guest run
"""

import os
import time
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from tests.fakes.pair import Background
from tests.vm import image, qemu, wheels
from tests.vm.bare_slave import Slave, started
from tests.vm.card import MIB, Card, plugged
from tests.vm.harness import Job
from vhostpci_shared import metadata as md

pytestmark = pytest.mark.vm

W = 4711
ANSWERS = 5
"""So many quiesces are answered while modprobe does not return."""
SECOND = 1
"""Names a second device to serve; its IVPosition is 0, as the first one's."""
MEMORY = md.Region(guest_addr=0, size=MIB, window=W, offset=0)


@pytest.fixture(scope="module")
def booted(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Slave]:
    """A VM with two root ports; its image has our module, which is not loaded."""
    logs = tmp_path_factory.mktemp("come-and-go")
    guest = image.build(wheels.guest_wheels(), module=True)
    with started(logs, list(qemu.ports(2)), guest=guest) as slave:
        yield slave


@pytest.fixture
def slave(booted: Slave) -> Iterator[Slave]:
    """The VM with nothing plugged, with a check after each test."""
    yield booted
    booted.close()
    assert booted.windows() == {}
    assert booted.vm.agents() == []


class Agent:
    """The agent in the slave, for all devices."""

    def __init__(self, slave: Slave, bind: str) -> None:
        self._slave = slave
        self._bind = bind

    def __enter__(self) -> "Agent":
        self.job: Job = self._slave.vm.spawn(
            f"exec vhostpci-guest run --bind {self._bind}"
        )
        self.job.wait_said("waiting for one to be plugged")
        return self

    def __exit__(self, *_: object) -> None:
        assert self.job.stop() == 0, self.job.output()

    def wait_until(self, condition: Callable[[], object]) -> None:
        """Wait until `condition` is true, for a minute of the guest's own time."""
        self._slave.vm.wait_until(condition, lambda: (self.status(), self.output()))

    def output(self) -> str:
        """Return what it has written so far."""
        return self.job.output()

    def status(self) -> Any:
        """Return the status of its device; None while it has none."""
        assert self.job.poll() is None, self.output()
        found = self._slave.vm.agents()
        return found[0] if found else None

    def windows(self) -> list[int | None]:
        """Sizes of its device's windows."""
        status = self.status()
        return [window["size"] for window in status["windows"]] if status else []

    def rings(self) -> set[str]:
        """States of its device's rings."""
        return {ring["state"] for ring in self.status()["rings"]}


@pytest.mark.parametrize("bind", ["vfio", "uio", "sysfs", "kmod"])
def test_devices_and_windows_may_go_at_any_time(slave: Slave, bind: str) -> None:
    with Agent(slave, bind) as agent:
        for times in (2, 1):
            with plugged(slave) as card:
                agent.wait_until(agent.status)
                card.publish(MEMORY)
                agent.wait_until(lambda: agent.windows() == [None])
                for _ in range(times):
                    slave.plug(W, MIB, "port1")
                    agent.wait_until(lambda: agent.windows() == [MIB])
                    agent.wait_until(lambda: agent.rings() == {"running"})
                    slave.ask_back(W)
                    assert slave.goes(W), agent.output()
                    agent.wait_until(lambda: agent.windows() == [None])
                    assert agent.rings() == {"stopped"}
                slave.ask_back(0)
                assert slave.goes(0), agent.output()
                agent.wait_until(lambda: agent.status() is None)


def test_window_that_is_named_no_more_is_given_back(slave: Slave) -> None:
    with Agent(slave, "vfio") as agent, plugged(slave) as card:
        card.publish(MEMORY)
        slave.plug(W, MIB, "port1")
        agent.wait_until(lambda: agent.windows() == [MIB])
        card.publish()
        agent.wait_until(lambda: agent.windows() == [])
        bound = slave.vm.run("ls -d /sys/bus/pci/drivers/vfio-pci/0*").stdout
        assert len(bound.split()) == 1, "the device; its window is given back"
        slave.ask_back(W)
        assert slave.goes(W)
        assert agent.status()["state"] == "ready"


class Quiesces(Background):
    """Asks the agent for one quiesce after the other, and counts its answers."""

    def __init__(self, card: Card, slave: Slave) -> None:
        super().__init__(self._quiesce)
        self._card = card
        self._vector = slave.vectors[0][md.METADATA_VECTOR]
        self._vm = slave.vm
        self.answers = 0

    def _quiesce(self) -> None:
        generation = self._card.publish()
        os.eventfd_write(self._vector, 1)
        patience = self._vm.patience(20)
        while self._answered_generation() != generation:
            assert not patience.is_over(), f"{self.answers} answers, and no more"
            time.sleep(0.001)
        self.answers += 1
        time.sleep(0.02)

    def _answered_generation(self) -> int:
        return md.Agent.parse(self._card.metadata.agent_bytes()).generation


@pytest.fixture
def modprobe_that_waits(slave: Slave) -> Iterator[None]:
    """Let modprobe of our module wait for the file /tmp/go, and then fail."""
    rule = "/etc/modprobe.d/waits.conf"
    wait = "touch /tmp/waits; until test -e /tmp/go; do sleep 0.1; done; false"
    slave.vm.run("mkdir -p /etc/modprobe.d && modprobe -r uio_vhostpci")
    slave.vm.put(rule, f"install uio_vhostpci {wait}\n".encode())
    yield
    slave.vm.run(f"touch /tmp/go; rm {rule}")


@pytest.mark.usefixtures("modprobe_that_waits")
def test_quiesce_is_answered_while_a_second_device_is_slow_to_bind(
    slave: Slave,
) -> None:
    vm = slave.vm
    vm.run("touch /tmp/go")
    with Agent(slave, "auto") as agent, plugged(slave) as card:
        agent.wait_until(agent.status)
        vm.run("rm -f /tmp/go /tmp/waits")
        with Quiesces(card, slave) as quiesces:
            slave.plug(SECOND, MIB, "port1", vectors=3, position=0)
            vm.wait_for("test -e /tmp/waits")
            before = quiesces.answers
            agent.wait_until(lambda: quiesces.answers > before + ANSWERS)
            assert "no vhostpci metadata" not in agent.output()
            vm.run("touch /tmp/go")
            agent.job.wait_said("no vhostpci metadata")  # so it is bound
        slave.ask_back(SECOND)
        assert slave.goes(SECOND), agent.output()

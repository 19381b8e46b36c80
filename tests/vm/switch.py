# SPDX-License-Identifier: Apache-2.0
"""A switch VM: it gets a card whenever a master connects, and bridges them all.

 a ---- vhost-user --+                 +-- window 0, memory -- TAP --+
 b ---- vhost-user --+- vhostpci-host -+-- window 0, memory -- TAP --+- br0
 c ---- vhost-user --+  (QMP)          +-- window 0, memory -- TAP --+
10.77.0.11 ...                          switch: vhostpci-guest run --bridge br0

`make demo ARGS=--switch` and test_switch.py perform the same.
"""

import itertools
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from tests.vm import image, memory, packets, qemu, traffic, wheels
from tests.vm.addons import Addon
from tests.vm.daemon import Device, Fleet
from tests.vm.harness import Vm
from tests.vm.pair import LINK_TIMEOUT, Master, Slave
from tests.vm.scene import State
from tests.vm.show import SILENT, Outcome, Progress, ping_text, rate_text, table
from tests.vm.traffic import Ping

FIRST, LATE = ("a", "b", "c"), "d"
RAM = "256M"
PORTS = 2 * len(FIRST)
"""Root ports: two for each master, for its window 0 and for its memory."""
SECONDS = 3
WINDOWS = "grep -l 0x1110 /sys/bus/pci/devices/*/device | wc -l"


@dataclass(slots=True)
class Report(Outcome):
    """The results of the demo; the fields have the names of its JSON."""

    pings: dict[str, Ping] = field(default_factory=dict)
    tcp_mbps: dict[str, float] = field(default_factory=dict)
    through_kill_and_add: dict[str, Ping] = field(default_factory=dict)
    late: dict[str, Ping] = field(default_factory=dict)
    windows: dict[str, int] = field(default_factory=dict)
    kicks_relayed: int | None = None

    def finish(self, seconds: float) -> None:
        """Note how long the demo took, and whether all its results are good."""
        groups = (self.pings, self.through_kill_and_add, self.late)
        pings = [ping for group in groups for ping in group.values()]
        crossed = all(ping.sent == ping.received for ping in pings)
        good = all(groups) and crossed and all(self.tcp_mbps.values())
        self.decide(seconds, good=good)

    def text(self) -> str:
        """Return the results as text."""
        rows = [("ping, each to each", ping_text(_all(self.pings)))]
        rows += [
            (f"TCP, {who}", rate_text(mbps)) for who, mbps in self.tcp_mbps.items()
        ]
        rows += [
            (f"ping, {who}, c goes, d comes", ping_text(ping))
            for who, ping in self.through_kill_and_add.items()
        ]
        rows += [(f"ping, {who}", ping_text(ping)) for who, ping in self.late.items()]
        rows += [
            (f"devices in the switch, {when}", str(count))
            for when, count in self.windows.items()
        ]
        rows += [("kicks that the daemon relayed", str(self.kicks_relayed))]
        return table(self.head("switch"), rows, ok=self.ok)


def _all(pings: dict[str, Ping]) -> Ping | None:
    """Add up all ping runs."""
    runs = [*pings.values()]
    return sum(runs[1:], start=runs[0]) if runs else None


class Switch:
    """The switch VM, the daemon, and the masters that are up."""

    def __init__(self, vm: Slave, fleet: Fleet, logs: Path) -> None:
        self.vm = vm
        self.fleet = fleet
        self.masters: dict[str, Master] = {}
        self._guest = image.build()
        self._logs = logs

    def start(self, device: Device) -> Master:
        """Start a master; it has booted when `greet` returns."""
        number = len(FIRST) if device.name == LATE else FIRST.index(device.name)
        master = Master(
            *(device.name, self._guest),
            logs=self._logs,
            args=[*device.card(), *memory.memfd(RAM)],
        )
        master.address = f"10.77.0.{11 + number}"
        master.start()
        self.masters[device.name] = master
        return master

    def greet(self, master: Master) -> None:
        """Wait until a master is up, and has a carrier."""
        master.wait_ready()
        master.configure()

    def kill(self, name: str) -> None:
        """Kill a master's QEMU."""
        self.masters.pop(name).close()

    def windows(self) -> int:
        """Return how many ivshmem functions the switch VM has."""
        return int(self.vm.run(WINDOWS).stdout)

    def wait_windows(self, count: int) -> None:
        """Wait until the switch VM has so many ivshmem functions."""
        self.vm.wait_for(f"test $({WINDOWS}) = {count}")

    def wait_reachable(self, *names: str) -> None:
        """Wait until these masters reach each other through the bridge."""
        for one, other in itertools.permutations(names, 2):
            address = self.masters[other].address
            # The limit is in the time of the master, which may be idle while the switch
            # VM waits for a processor.
            ping = f"ping -n -q -c 1 -W 1 {address}"
            self.masters[one].wait_for(ping, 2 * LINK_TIMEOUT)

    def ping(self, one: str, other: str, count: int = 5) -> Ping:
        """Ping from master to master."""
        address = self.masters[other].address
        return traffic.ping(self.masters[one], address, count, apart=True)

    def close(self) -> None:
        """End the masters."""
        for name in [*self.masters]:
            self.kill(name)


@contextmanager
def booted(
    logs: Path,
    say: Progress = SILENT,
    *,
    module: bool = False,
    ram: str = "384M",
    features: str | None = None,
    addons: Sequence[Addon] = (),
) -> Iterator[Switch]:
    """The switch VM without an agent, and the daemon with three devices.

    Args:
        logs: where all of them write their logs.
        say: is told what happens.
        module: whether the switch VM has our kernel module.
        ram: the memory of the switch VM.
        features: what the masters are offered at most.
        addons: more programs that the switch VM has.
    """
    say(
        "booting the switch VM",
        "it has no card yet: each master brings one when it connects",
    )
    say.set(State.COMING, "switch")
    guest = image.build(wheels.guest_wheels(), module=module, addons=addons)
    args = qemu.ports(PORTS, "512M")
    with ExitStack() as stack:
        vm = Slave("switch", guest, logs=logs, args=args, memory=ram, iommu=True)
        stack.enter_context(vm)
        vm.wait_ready()
        say.set(State.THERE, "switch")
        monitor = vm.run_dir / "slave-qmp"
        fleet = Fleet(FIRST, logs=logs, slave_qmp=monitor, features=features)
        switch = Switch(vm, stack.enter_context(fleet), logs)
        say.set(State.THERE, "daemon")
        stack.callback(switch.close)
        yield switch


def perform(switch: Switch, report: Report, say: Progress) -> None:
    """Run the steps of the demo; the agent runs in the switch VM."""
    say(
        f"booting the masters {', '.join(FIRST)}; the switch gets their cards",
        "the daemon plugs a PCI device into the switch for each master's memory",
    )
    say.set(State.COMING, *FIRST)
    for master in [switch.start(switch.fleet.device(name)) for name in FIRST]:
        switch.greet(master)
        say.set(State.THERE, master.name)
    switch.wait_reachable(*FIRST)
    report.windows["a b c"] = switch.windows()
    say(
        "ping from each to each",
        "no packet touches the hypervisor's network: the bridge is in the switch",
    )
    for one, other in itertools.permutations(FIRST, 2):
        report.pings[f"{one} to {other}"] = switch.ping(one, other)
    _measure(switch, report, say)
    _kill_and_add(switch, report, say)
    say("ping the new one")
    for one, other in (("a", LATE), (LATE, "b")):
        report.late[f"{one} to {other}"] = switch.ping(one, other)
    report.kicks_relayed = _relayed(switch, "a")


def _measure(switch: Switch, report: Report, say: Progress) -> None:
    for one, other in (("a", "b"), ("b", "c")):
        say(f"iperf3: TCP from {one} to {other}")
        source, target = switch.masters[one], switch.masters[other]
        with traffic.iperf_server(target):
            rate = traffic.tcp(source, target.address, SECONDS)
        report.tcp_mbps[f"{one} to {other}"] = round(rate, 1)


def _kill_and_add(switch: Switch, report: Report, say: Progress) -> None:
    """Kill a master and add one while two others ping each other."""
    a, b = switch.masters["a"], switch.masters["b"]
    with (
        traffic.pinging(a, b.address) as up,
        traffic.pinging(b, a.address) as down,
    ):
        say(
            "killing c while a and b talk",
            "its card is unplugged, and the others lose no packet",
        )
        switch.kill("c")
        say.set(State.GONE, "c")
        switch.wait_windows(2 * (len(FIRST) - 1))
        report.windows["a b"] = switch.windows()
        say("adding d while a and b talk", "a command of the daemon, and no restart")
        say.set(State.COMING, LATE)
        switch.greet(switch.start(switch.fleet.add(LATE)))
        say.set(State.THERE, LATE)
        switch.wait_reachable("a", LATE)
        report.windows["a b d"] = switch.windows()
    report.through_kill_and_add = {"a to b": up.result(), "b to a": down.result()}


def _relayed(switch: Switch, name: str) -> int:
    rings = switch.fleet.device(name).status()["rings"]
    return sum(int(ring["kicks_relayed"]) for ring in rings)


def _crossed(switch: Switch) -> dict[str, int]:
    """Return how many packets each master has sent and received.

    Raises:
        OSError: the daemon cannot be asked now.
    """
    names = [*switch.masters]
    return {name: sum(packets.crossed(switch.fleet.control(name))) for name in names}


def _agent_options(report: Report) -> list[str]:
    how = ["--bind", report.bind, "--data-plane", report.data_plane]
    return [*how, "--bridge", "br0"]


def run(
    report: Report,
    logs: Path,
    progress: Progress,
    keep: Callable[[Sequence[Vm]], None] = lambda _: None,
) -> None:
    """Boot the VMs, run the steps, and call ``keep`` before the VMs end."""
    with booted(logs, progress, module=report.bind == "kmod") as switch:
        report.kernel = switch.vm.kernel
        progress(f"vhostpci-guest in the switch, a bridge, bound by {report.bind}")
        progress.follow(lambda: _crossed(switch))
        with switch.vm.waiting_agent(*_agent_options(report)):
            progress.set(State.THERE, "agent")
            try:
                perform(switch, report, progress)
            except Exception as error:
                report.fail(error)
            report.finish(progress.seconds())
            keep([switch.vm, *switch.masters.values()])
            progress("shutting down")

# SPDX-License-Identifier: Apache-2.0
"""Open vSwitch with DPDK in the switch VM, in place of our threads and a bridge.

 a ---- vhost-user --+                 +-- memory of a -- port a --+
 b ---- vhost-user --+- vhostpci-host -+-- memory of b -- port b --+- br0
 c ---- vhost-user --+  (QMP)          +-- memory of c -- port c --+
10.77.0.11 ...                          switch: vhostpci-guest run, Open vSwitch

Its ports are of type `dpdkvhostuserclient`: each connects to the agent's socket for a
device, maps the master's memory and works the rings.  No packet passes the switch VM's
kernel, or anything of ours.
"""

import signal
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Self

from tests.vm import switch
from tests.vm.addons import OPEN_VSWITCH
from tests.vm.harness import Job, Vm
from tests.vm.pair import Slave
from tests.vm.show import Progress
from tests.vm.switch import Switch

SOCKETS = "/run/vhostpci-back-end"
DIRECTORY = "/run/openvswitch"
DATABASE = f"unix:{DIRECTORY}/db.sock"
BRIDGE = "br0"
BIND = "vfio"
"""The harder one: an agent that is killed closes its VFIO devices."""
SETTINGS = {
    "dpdk-init": "true",
    # Ordinary memory, of which only what is used is there: 75 MB for each port that has
    # its rings.  Without --legacy-mem it asks for --in-memory, which --no-huge does not
    # allow.
    "dpdk-extra": '"--no-huge --legacy-mem -m 384 --no-pci --no-telemetry"',
    # One pool for all ports is of 262,144 packets: 800 MB.
    "per-port-memory": "true",
    # The thread that polls sleeps for 0.5 ms at most while no packets come: the VM has
    # one processor, which the agent needs, too.
    "pmd-maxsleep": "500",
    "pmd-sleep-max": "500",  # its name from Open vSwitch 3.2 on
}
STARTS = 120.0


class OpenVSwitch:
    """A database server and a switch in a VM, for as long as a `with` block takes."""

    def __init__(self, vm: Vm) -> None:
        self._vm = vm
        self._jobs: list[Job] = []

    def __enter__(self) -> Self:
        file = f"{DIRECTORY}/conf.db"
        schema = "/usr/share/openvswitch/vswitch.ovsschema"
        self._vm.run(f"mkdir -p {DIRECTORY} && ovsdb-tool create {file} {schema}")
        self._spawn("ovsdb-server", file, f"--remote=p{DATABASE}")
        self._vm.wait_for(f"test -S {DIRECTORY}/db.sock")
        settings = " ".join(
            f"other_config:{name}={SETTINGS[name]}" for name in SETTINGS
        )
        self._vsctl(f"--no-wait init -- set Open_vSwitch . {settings}")
        self._start()
        self._vsctl(f"add-br {BRIDGE} -- set bridge {BRIDGE} datapath_type=netdev")
        return self

    def __exit__(self, *_: object) -> None:
        for job in reversed(self._jobs):
            job.send(signal.SIGKILL)
            job.wait(STARTS)

    def restart(self) -> None:
        """Kill the switch, and start it again, with the ports that its database has."""
        switch = self._jobs.pop()
        switch.send(signal.SIGKILL)
        switch.wait(STARTS)
        self._start()

    def add_port(self, name: str) -> None:
        """Add a port that connects to the agent's socket for a device."""
        self._vsctl(
            f"add-port {BRIDGE} {name} -- set Interface {name} "
            f"type=dpdkvhostuserclient options:vhost-server-path={SOCKETS}/{name}.sock"
        )

    def said(self) -> str:
        """Return what the switch has written."""
        return self._jobs[-1].output()

    def _vsctl(self, words: str) -> None:
        """Change the database, and wait until the switch has followed."""
        # In seconds; without a limit it waits without end for a switch that has ended.
        command = f"ovs-vsctl --timeout=60 --db={DATABASE} {words}"
        self._vm.run(command, timeout=STARTS)

    def _start(self) -> None:
        self._spawn("/usr/lib/openvswitch-switch-dpdk/ovs-vswitchd-dpdk", DATABASE)

    def _spawn(self, program: str, *words: str) -> None:
        control = f"--unixctl={DIRECTORY}/{program.rpartition('/')[2]}.ctl"
        here = ("env", "RUNTIME_DIRECTORY=/run", f"OVS_RUNDIR={DIRECTORY}")
        self._jobs.append(self._vm.spawn([*here, program, *words, control]))


@contextmanager
def booted(logs: Path, say: Progress) -> Iterator[tuple[Switch, OpenVSwitch]]:
    """The switch VM with Open vSwitch and its ports, without an agent and masters."""
    vms = switch.booted(
        *(logs, say),
        module=BIND == "kmod",
        ram="640M",
        features="dpdk",
        addons=[OPEN_VSWITCH],
    )
    with vms as masters, OpenVSwitch(masters.vm) as bridge:
        for name in (*switch.FIRST, switch.LATE):
            bridge.add_port(name)
        yield masters, bridge


@contextmanager
def agent(vm: Slave) -> Iterator[Job]:
    """Run the agent that the ports connect to while the block runs."""
    plane = f"vhost-user:{SOCKETS}/{{name}}.sock"
    with vm.waiting_agent("--bind", BIND, "--data-plane", plane) as job:
        yield job

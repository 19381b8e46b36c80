# SPDX-License-Identifier: Apache-2.0
"""Open vSwitch with DPDK as a back-end: a whole switch in a separate directory.

Its ports of type `dpdkvhostuserclient` connect to the socket where the front-end
listens, and connect again when that goes.
"""

import signal
from pathlib import Path
from typing import Self

from tests.backends.dpdk import drivers
from tests.process.program import Program, run
from tests.unix_socket import connected
from tests.vm.harness import DIE_WITH_US
from tests.vm.programs import Unpacked, unpacked
from tests.waiting import when_listening

PACKAGES = ("openvswitch-switch-dpdk", "librte-meta-mempool")
"""The second has the driver of DPDK's memory pools, which the first only recommends."""
DAEMON = "usr/lib/openvswitch-switch-dpdk/ovs-vswitchd-dpdk"
BRIDGE = "br0"


def packages(suite: str) -> Unpacked:
    """Return Open vSwitch with DPDK of a suite of Debian."""
    return unpacked(suite, *PACKAGES)


class OpenVSwitch:
    """A database server and a switch.

    Args:
        files: where it is.
        directory: where its database, sockets and logs go; it is made.
    """

    def __init__(self, files: Unpacked, directory: Path) -> None:
        self._files = files
        self._directory = directory
        self._database = f"unix:{directory}/db.sock"
        self._server: Program | None = None
        self._switch: Program | None = None

    def __enter__(self) -> Self:
        self._directory.mkdir()
        file = self._directory / "conf.db"
        schema = self._files.root / "usr/share/openvswitch/vswitch.ovsschema"
        self._run("usr/bin/ovsdb-tool", "create", str(file), str(schema))
        listen = f"--remote=p{self._database}"
        self._server = self._start("usr/sbin/ovsdb-server", str(file), listen)
        socket = self._directory / "db.sock"
        # ovs-vsctl does not try again where nothing listens yet.
        when_listening(lambda: connected(socket)).close()
        self._vsctl("--no-wait", "init")
        extra = f"other_config:dpdk-extra={_eal(self._files)}"
        # One pool for all ports would be four times as large as those of two.
        pools = "other_config:per-port-memory=true"
        settings = ("other_config:dpdk-init=true", pools, extra)
        self._vsctl("--no-wait", "set", "Open_vSwitch", ".", *settings)
        self.start()
        bridge = ("set", "bridge", BRIDGE, "datapath_type=netdev")
        self._vsctl("add-br", BRIDGE, "--", *bridge)
        return self

    def __exit__(self, *_: object) -> None:
        for program in (self._switch, self._server):
            if program:
                program.close()

    @property
    def switch(self) -> Program:
        """The process that has the data path."""
        assert self._switch, "it has not been started"
        return self._switch

    def start(self) -> None:
        """Start the switch, with the ports that its database has."""
        self._switch = self._start(DAEMON, self._database)

    def restart(self, number: signal.Signals = signal.SIGKILL) -> None:
        """End the switch by a signal, and start it again."""
        self.switch.end(number)
        self.start()

    def add_port(self, name: str, socket: Path) -> None:
        """Add a port that connects to a front-end's socket."""
        kind = ("type=dpdkvhostuserclient", f"options:vhost-server-path={socket}")
        self._vsctl("add-port", BRIDGE, name, "--", "set", "Interface", name, *kind)

    def is_connected(self, name: str) -> bool:
        """Whether a port's front-end is there and has set it up."""
        return self._vsctl("get", "Interface", name, "link_state").strip() == "up"

    def _vsctl(self, *words: str) -> str:
        # In seconds; without a limit it waits without end for a switch that has ended.
        options = ("--timeout=60", f"--db={self._database}")
        return self._run("usr/bin/ovs-vsctl", *options, *words)

    def _run(self, program: str, *words: str) -> str:
        done = run(*self._argv(program, *words))
        said = self._switch.log if self._switch else ""
        assert not done.returncode, f"{program}: {done.stderr}\n{said}"
        return done.stdout

    def _start(self, program: str, *words: str) -> Program:
        name = Path(program).name
        control = f"--unixctl={self._directory}/{name}.ctl"
        argv = [*DIE_WITH_US, *self._argv(program, *words), control]
        return Program(argv, self._directory / f"{name}.log")

    def _argv(self, program: str, *words: str) -> list[str]:
        names = ("OVS_RUNDIR", "OVS_LOGDIR", "OVS_DBDIR", "RUNTIME_DIRECTORY")
        here = [f"{name}={self._directory}" for name in names]
        return ["env", *here, *self._files.command(program), *words]


def _eal(files: Unpacked) -> str:
    """Return the options of DPDK's: ordinary memory, and one driver."""
    # Without --legacy-mem it asks for --in-memory, which --no-huge does not allow.
    memory = ("--no-huge", "--legacy-mem", "-m", "256")
    words = (*memory, "--no-pci", "--no-telemetry", *drivers(files, "mempool_ring"))
    return " ".join(words)

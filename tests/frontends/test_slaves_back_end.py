# SPDX-License-Identifier: Apache-2.0
"""The data plane vhost-user: DPDK answers the master in place of the slave's kernel.

10.9.0.1 mtap0 ── Master ── vhostpci-host ── vhostpci-guest ┄ vhost-user ┄ testpmd
         (threads of the test)   (process)        (process)       (process, icmpecho)
"""

import os
import signal
import sys
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path

import pytest

from tests.frontends.console import Console
from tests.frontends.testpmd import NO_HUGE, Testpmd
from tests.process.attach import AttachLab
from tests.process.lab import ATTACH, MASTER_ADDRESS, MEMORY, set_up_master
from tests.process.master import Master, Ram
from tests.process.program import Program
from tests.waiting import wait_for
from vhostpci_shared.virtio import Feature

pytestmark = pytest.mark.frontends

USO = Feature.NET_F_HOST_USO | Feature.NET_F_GUEST_USO4 | Feature.NET_F_GUEST_USO6
"""What DPDK 22.11 does not know."""


class BackEnd(Testpmd):
    """testpmd with a back-end's card, which answers ARP and ping for any address."""

    __test__ = False

    def __init__(
        self, socket: Path, directory: Path, *, listens: bool, pairs: int
    ) -> None:
        cores = ",".join(map(str, sorted(os.sched_getaffinity(0))))
        # As Linux's driver has it, a ping comes without its checksum.
        way = f"iface={socket},client={int(not listens)}"
        card = f"{way},queues={pairs},tso=1,legacy-ol-flags=1"
        argv = [
            *("setpriv", "--pdeathsig", "KILL", "stdbuf", "-oL", "dpdk-testpmd"),
            *("--lcores", f"0@({cores}),1@({cores})", "--no-pci", "--no-telemetry"),
            *(*NO_HUGE, "--vdev", f"net_vhost0,{card}", "--", "--interactive"),
            *("--auto-start", "--forward-mode=icmpecho", "--total-num-mbufs=4096"),
            *(f"--rxq={pairs}", f"--txq={pairs}"),
        ]
        environment = {**os.environ, "RUNTIME_DIRECTORY": str(directory)}
        Console.__init__(self, argv, directory / "back-end.log", environment)

    def kill(self) -> None:
        """Kill it, and close its console."""
        self.process.send_signal(signal.SIGKILL)
        self.process.communicate()


@contextmanager
def agent_for(lab: AttachLab, place: str, log: Path) -> Iterator[Program]:
    """An agent whose packets go to a back-end."""
    module = (sys.executable, "-m", "vhostpci_guest", "run")
    where = ("--socket", str(lab.run_dir / "net0.ivshmem"))
    argv = [*lab.slave.prefix, *module, *where, "--data-plane", f"vhost-user:{place}"]
    with closing(Program(argv, log)) as agent:
        yield agent


@pytest.mark.parametrize(
    ("listens", "pairs"), [(False, 2), (True, 1)], ids=["client", "server"]
)
def test_packets_cross_and_again_after_a_death(
    lab: AttachLab, tmp_path: Path, listens: bool, pairs: int
) -> None:
    path = tmp_path / "back-end" / "socket"
    lab.start_daemon(*ATTACH, "--queue-pairs", str(pairs))
    if listens:
        path.parent.mkdir()
    place = f"{path},server=off" if listens else str(path)
    with (
        agent_for(lab, place, tmp_path / "agent.log") as agent,
        Master(lab.socket, Ram.of_nodes(MEMORY), queue_pairs=pairs) as master,
    ):
        agent.wait_log(f"no back-end at {path}")
        set_up_master(MASTER_ADDRESS)
        for _ in range(2):
            path.unlink(missing_ok=True) if listens else None
            back_end = BackEnd(path, tmp_path, listens=listens, pairs=pairs)
            back_end.started()
            if master.card is None:
                master.load(without=USO, channels=pairs)
            wait_for(lambda: lab.ping_from_master(1) == 1, lambda: agent.log)
            assert lab.ping_from_master(20) == 20
            # The driver is loaded again: its rings stop, and begin at 0.
            master.unload()
            master.load(without=USO, channels=pairs)
            wait_for(lambda: lab.ping_from_master(1) == 1, lambda: agent.log)
            assert lab.ping_from_master(20) == 20
            assert all(ring["used_index"] for ring in lab.status()["rings"])
            back_end.kill()
            wait_for(lambda: lab.status()["agent"]["state"] == "waiting", lab.status)
        assert agent.end() == 0
    assert listens or not path.exists()

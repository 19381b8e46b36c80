# SPDX-License-Identifier: Apache-2.0
"""What a master is offered when another program serves its rings, and what is too much.

the test's namespace                              the slave's namespace
Master ── vhostpci-host ── vhostpci-guest ── FakeBackEnd, then our ring driver on vp0
"""

import sys
from contextlib import closing
from pathlib import Path

import pytest

from tests.fakes.back_end import FakeBackEnd
from tests.process.lab import Lab
from tests.process.program import Program
from tests.waiting import wait_for, when_listening
from vhostpci_host.config.features import ALWAYS, parse_features
from vhostpci_shared import vhost_user as vu
from vhostpci_shared.vhost_user import Request
from vhostpci_shared.virtio import Feature

pytestmark = pytest.mark.process

SERVES = parse_features("dpdk")


def start_agent(lab: Lab, socket: Path) -> Program:
    """Start an agent that waits for a back-end."""
    module = (sys.executable, "-m", "vhostpci_guest")
    words = ("--data-plane", f"vhost-user:{socket}", "--socket")
    argv = [*lab.slave.prefix, *module, "run", *words, f"{lab.run_dir}/net0.ivshmem"]
    return lab.start_agent_by(argv)


def connect(socket: Path) -> FakeBackEnd:
    back_end = when_listening(lambda: FakeBackEnd.connect(socket))
    back_end.features = int(SERVES)
    return back_end


def wait_state(lab: Lab, back_end: FakeBackEnd, state: str) -> None:
    def reached() -> bool:
        back_end.serve()
        return bool(lab.status()["state"] == state)

    wait_for(reached, lab.status)


def test_master_whose_driver_has_more_is_told_so_and_can_be_served(
    lab: Lab, tmp_path: Path
) -> None:
    daemon = lab.start_daemon()
    # It boots when nothing is known of a data plane.
    master = lab.start_master()
    master.load()
    agent = start_agent(lab, tmp_path / "back-end")
    lab.wait_state("agent is waiting")
    with closing(connect(tmp_path / "back-end")) as back_end:
        wait_state(lab, back_end, "features do not match")
        status = lab.status()
        assert "vhost-user lacks NET_F_CSUM" in status["features"]["mismatch"]
        assert status["agent"]["state"] == "mismatch"
        daemon.wait_log("the data plane vhost-user lacks NET_F_CSUM")
        assert Request.SET_VRING_KICK not in back_end.heard
        assert master.frontend.stop_ring(1) == 0
        assert agent.end() == 0
    assert "broke" not in daemon.log + agent.log
    assert "did not stop within" not in daemon.log
    lab.start_agent()
    assert master.card is not None
    master.card.describe(master.frontend)
    lab.wait_carrier("UP")
    assert lab.ping_from_slave() == 5


def test_master_is_offered_what_the_back_end_serves(lab: Lab, tmp_path: Path) -> None:
    lab.start_daemon()
    start_agent(lab, tmp_path / "back-end")
    with closing(connect(tmp_path / "back-end")) as back_end:

        def withheld() -> bool:
            back_end.serve()
            return "NET_F_CSUM" in lab.status()["features"]["withheld"]

        wait_for(withheld, "the daemon knows what is served")
        master = lab.start_master()
        features = master.frontend.features
        assert features == SERVES & ~Feature.NET_F_MQ | ALWAYS
        master.load()
        wait_state(lab, back_end, "running")

        def started() -> bool:
            back_end.serve()
            return Request.SET_VRING_KICK in back_end.heard

        wait_for(started, "the back-end is given a ring")
        said = back_end.last(Request.SET_FEATURES)
        assert isinstance(said, vu.U64)
        assert said.value & Feature.NET_F_CSUM == 0

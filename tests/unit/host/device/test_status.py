# SPDX-License-Identifier: Apache-2.0
"""What a user is told of a device, where the parts of the device say it."""

from tests import json_document
from tests.fakes.frontend import RingAt
from tests.fakes.ports import RecordedMaster
from tests.unit.host.scene import Scene
from vhostpci_host.cli import print_status, vms
from vhostpci_host.device.status import describe, row, state
from vhostpci_host.interfaces import Json
from vhostpci_shared import vhost_user as vu
from vhostpci_shared.about import About, AboutFlag, Uncounted
from vhostpci_shared.metadata import AgentFlag, AgentRingState
from vhostpci_shared.vhost_user import Request
from vhostpci_shared.virtio import Feature


def test_front_end_that_hangs_is_the_state_and_not_a_missing_driver(
    scene: Scene,
) -> None:
    """A slave's QEMU on the master's socket waits there and says nothing."""
    scene.front_end([])
    master = scene.device.master
    assert isinstance(master, RecordedMaster)
    master.hangs = "says nothing: is it a slave's QEMU?"
    assert state(scene.device) == "front-end hangs"
    text = print_status.text(describe(scene.device))
    assert "problem  says nothing: is it a slave's QEMU?" in text
    master.hangs = ""
    assert state(scene.device) == "master's driver is not loaded"


def test_front_end_that_cannot_be_connected_to_is_told_of(scene: Scene) -> None:
    problem = "/run/web is not there yet"
    status = describe(scene.device, problem)
    assert f"problem  {problem}" in print_status.text(status)
    scene.front_end([])
    assert "problem" not in print_status.text(describe(scene.device, problem))


def test_problem_of_the_file_and_of_the_master_is_told_once(scene: Scene) -> None:
    """A master with more RAM than the device is both."""
    scene.front_end([])
    status = describe(scene.device)
    status["memory"]["problem"] = status["master"]["problem"] = "more RAM"
    assert print_status.text(status).count("problem  more RAM") == 1


def test_ring_that_the_agent_has_stopped_is_not_shown_as_served(scene: Scene) -> None:
    """As while the file system of the master's memory is full."""
    agent = scene.agent(scene.slave())
    scene.running()
    scene.settle()
    assert "in the slave" not in print_status.text(describe(scene.device))
    agent.say_ring(0, AgentRingState.STOPPED)
    notes = print_status.text(describe(scene.device)).splitlines()[-2:]
    assert [note.endswith("stopped in the slave") for note in notes] == [True, False]
    # What the agent says of an earlier session is not shown.
    scene.device.leases[0].renew(scene.loop.time())
    assert "in the slave" not in print_status.text(describe(scene.device))


def test_carrier_of_the_master_is_told_of_where_it_is_unusual(scene: Scene) -> None:
    carrier: Json = {"grace": 3, "off": True, "why_off": "no agent"}
    carrier |= {"waits_for": 17, "problem": None}
    status = describe(scene.device, carrier=carrier)
    assert status["state"] == "no agent: the master has no carrier"
    assert "  carrier  off until an agent serves (pid 17)" in print_status.text(status)
    carrier |= {"waits_for": None}
    assert "an agent serves\n" in print_status.text(status)
    carrier |= {"off": False, "why_off": None, "problem": "it keeps its own"}
    assert "  problem  it keeps its own\n" in print_status.text(status)
    carrier |= {"problem": None}
    assert "  problem" not in print_status.text(status)
    del status["carrier"]  # of an earlier daemon
    assert "  carrier" not in print_status.text(status)


def test_signals_that_the_daemon_has_to_pass_on_are_counted(scene: Scene) -> None:
    scene.slave()
    qemu = scene.running()
    qemu.kick(1)
    scene.loop.advance()
    status = describe(scene.device)
    status["rings"][0]["calls_relayed"] = 7
    receive, transmit = print_status.text(status).splitlines()[-2:]
    assert receive == "  rx0      1 kicks relayed, 7 calls relayed"
    assert transmit == "  tx0      2 kicks relayed"
    status["rings"][1]["kicks_relayed"] = 0
    assert print_status.text(status).splitlines()[-1] == receive


def test_status_of_an_earlier_daemon_can_be_read(scene: Scene) -> None:
    status = describe(scene.device)
    for ring in status["rings"]:
        for key in ("calls_relayed", "fill", "format"):
            del ring[key]
    for key in ("state_since", "rates", "connects", "connect_problem", "features"):
        del status[key]
    for key in ("version", "port", "interrupts", "slow_window", "not_counted"):
        del status["agent"][key]
    text = print_status.text(status)
    assert "relayed" not in text
    assert text.startswith("dev: no master\n  device   arena of ")


def test_slave_that_does_not_know_the_masters_udp_segments_is_told_of(
    scene: Scene,
) -> None:
    agent = scene.agent(scene.slave())
    front_end = scene.running()
    scene.settle()
    line = "makes datagrams of UDP segments"
    assert line in print_status.text(describe(scene.device))
    earlier = describe(scene.device)
    del earlier["agent"]["flags"]
    assert line not in print_status.text(earlier)
    agent.say(flags=AgentFlag.USO)
    scene.settle()
    assert line not in print_status.text(describe(scene.device))
    assert describe(scene.device)["agent"]["flags"] == ["USO"]
    agent.say(flags=AgentFlag(0))
    scene.settle()
    front_end.features &= ~Feature.NET_F_HOST_USO
    front_end.send(Request.SET_FEATURES, vu.U64(front_end.features))
    scene.settle()
    assert line not in print_status.text(describe(scene.device))


def test_what_an_agent_tells_of_itself_is_shown_while_it_is_that_agents(
    scene: Scene,
) -> None:
    agent = scene.agent(scene.slave())
    scene.running()
    entry = About(
        instance=1,
        uncounted=Uncounted.OCTETS,
        flags=AboutFlag.SLOW,
        version="1.2",
        port="net7",
    )
    agent.metadata.write_about(entry)
    scene.settle()
    said = describe(scene.device)["agent"]
    assert (said["version"], said["port"]) == ("1.2", "net7")
    assert (said["interrupts"], said["slow_window"]) == (False, True)
    assert said["not_counted"] == ["bytes"]
    agent.say(instance=2)
    scene.settle()
    said = describe(scene.device)["agent"]
    assert (said["version"], said["port"], said["not_counted"]) == (None, None, [])
    assert said["interrupts"] is None


def test_ring_is_as_full_as_its_driver_says_if_that_can_be(scene: Scene) -> None:
    scene.running()
    ring = RingAt.nth(0)
    assert describe(scene.device)["rings"][0]["fill"] == 0
    scene.set_used(ring, 65530)
    scene.set_avail(ring, 4)
    assert describe(scene.device)["rings"][0]["fill"] == 10
    scene.set_avail(ring, 65529)
    assert describe(scene.device)["rings"][0]["fill"] is None


def test_document_has_each_key_of_the_status_and_no_other(scene: Scene) -> None:
    scene.agent(scene.slave())
    scene.running()
    for _ in range(3):
        scene.settle()
        scene.device.traffic.sample(scene.loop.time())
    carrier: Json = {"grace": 3, "off": False, "why_off": None, "waits_for": None}
    carrier |= {"lacking": [], "refused": None, "problem": None}
    status = describe(scene.device, carrier=carrier)
    known = json_document.documented("vhostpci-host status")
    found = set(json_document.keys(vms.add_to(status), known))
    # The daemon itself adds these; the others are a confined device's.
    more = {"keeper", "seccomp", "socket_files"}
    more |= {f"confined.{key}" for key in ("shared", "memory", "pool")}
    assert found | more == known
    known = json_document.documented("vhostpci-host list")
    assert set(vms.add_names(row(scene.device.config, scene.device, ""))) == known

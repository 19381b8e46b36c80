# SPDX-License-Identifier: Apache-2.0
"""`dump`, `pcap`, `trace` and `metrics`, beside a daemon and an agent that go on."""

import json
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from pcapng import FileScanner  # type: ignore[import-untyped]
from prometheus_client.parser import text_string_to_metric_families

from tests.fakes.netns import private_network
from tests.process.lab import ATTACH, MEMORY, Lab
from tests.process.master import Ram
from tests.process.program import run
from tests.waiting import TIMEOUT, wait_for

# python-pcapng warns of its own table of options.
NO_PCAPNG_WARNINGS = pytest.mark.filterwarnings("ignore:Field type:DeprecationWarning")
METRICS = (Path(__file__).parents[2] / "docs/metrics.md").read_text()

pytestmark = pytest.mark.process


@contextmanager
def start_shared(directory: Path) -> Iterator[Lab]:
    """A daemon, an agent and a master that work; `dump` changes nothing of it."""
    with private_network(), Lab(directory) as lab:
        lab.start_daemon()
        lab.start_agent()
        lab.start_master().load()
        lab.wait_state("running")
        lab.wait_carrier("UP")
        yield lab


def dump_in_slave(lab: Lab, *words: str) -> subprocess.CompletedProcess[str]:
    # By the socket: another test's agent may have a device of the same name.
    name = str(lab.run_dir / "net0.ivshmem")
    return run(sys.executable, "-m", "vhostpci_guest", "dump", name, *words)


def both(lab: Lab, *words: str) -> list[Any]:
    """Return what the two commands print as JSON."""
    done = lab.run_host("dump", "net0", "-j", *words), dump_in_slave(lab, "-j", *words)
    for one in done:
        assert one.returncode == 0, one.stderr
    return [json.loads(one.stdout) for one in done]


def test_both_sides_see_the_same(shared: Lab) -> None:
    assert shared.ping_from_master() == 5
    for found in both(shared, "--ring", "0"):
        metadata, (ring,) = found["metadata"], found["rings"]
        assert found["name"] == metadata["device"]["name"] == "net0"
        assert metadata["problems"] == []
        assert metadata["agent"]["state"] == "READY"
        assert metadata["agent_rings"][1]["packets"] >= 5
        # The driver keeps receive buffers in the ring.
        assert ring["pending"]
        chained = [one for one in ring["descriptors"] if one["chain"] is not None]
        assert chained
        assert all(one["place"].startswith("window 0 + ") for one in chained)
    assert shared.ping_from_master() == 5


def test_text_says_each_ring(shared: Lab) -> None:
    for done in shared.run_host("dump", "net0"), dump_in_slave(shared):
        assert done.returncode == 0, done.stderr
        assert "ring 0 (rx0), split" in done.stdout
        assert "ring 1 (tx0), split" in done.stdout
        assert "F_VERSION_1" in done.stdout


def test_ring_that_is_not_there_is_an_error(shared: Lab) -> None:
    for done in (
        shared.run_host("dump", "net0", "--ring", "9"),
        dump_in_slave(shared, "--ring", "9"),
    ):
        assert done.returncode == 1
        assert "no ring 9; there are 2, from 0 on" in done.stderr


def test_conversation_with_the_front_end_is_kept(shared: Lab) -> None:
    done = shared.run_host("trace", "net0", "--once")
    assert done.returncode == 0, done.stderr
    assert "-> SET_MEM_TABLE region0=(guest_addr=0x0, " in done.stdout
    assert "<- GET_FEATURES reply features=" in done.stdout
    assert "-> SET_VRING_KICK index=0 nofd=False + 1 descriptor" in done.stdout


def test_metrics_are_those_of_the_document(shared: Lab) -> None:
    done = shared.run_host("metrics")
    assert done.returncode == 0, done.stderr
    found = {one.name: one for one in text_string_to_metric_families(done.stdout)}
    rows = (line.split("`") for line in METRICS.splitlines() if line.startswith("| `v"))
    named = {row[1].removesuffix("_total") for row in rows}
    named = {one for one in named if "_agent_" not in one}
    # Two are of confined devices only.
    bytes_ = {one for one in named if "_device_confined_" in one}
    assert len(bytes_) == 2
    assert set(found) == named - bytes_
    (up,) = found["vhostpci_device_up"].samples
    assert (up.labels, up.value) == ({"device": "net0"}, 1)
    packets = found["vhostpci_ring_packets"].samples
    assert [one.labels["queue"] for one in packets] == ["rx0", "tx0"]


def is_listened_at(path: Path) -> bool:
    """Whether a socket takes connections: it has its path a moment before."""
    with socket.socket(socket.AF_UNIX) as client:
        return client.connect_ex(str(path)) == 0


def test_metrics_are_served_until_a_signal(shared: Lab, tmp_path: Path) -> None:
    path = tmp_path / "socket"
    words = ("metrics", "--run-dir", str(shared.run_dir), "--listen", f"unix:{path}")
    server = subprocess.Popen([sys.executable, "-m", "vhostpci_host", *words])
    try:
        wait_for(lambda: is_listened_at(path), "the metrics are served")
        with socket.socket(socket.AF_UNIX) as client:
            client.connect(str(path))
            client.sendall(b"GET /metrics HTTP/1.0\r\n\r\n")
            with client.makefile() as answer:
                assert 'vhostpci_device_up{device="net0"} 1' in answer.read()
    finally:
        server.terminate()
        assert server.wait(TIMEOUT) == 0
    assert not path.exists()


@contextmanager
def capturing(lab: Lab, file: Path, *words: str) -> Iterator[subprocess.Popen[bytes]]:
    """Capture the lab's packets in a file, from when the block begins."""
    name = str(lab.run_dir / "net0.ivshmem")
    line = [sys.executable, "-m", "vhostpci_guest", "pcap", name, "-w", str(file)]
    capture = subprocess.Popen([*line, *words], stderr=subprocess.PIPE)
    try:
        # Its interfaces are written when the workers have begun to copy.
        wait_for(lambda: file.exists() and file.stat().st_size > 0, "it captures")
        yield capture
    finally:
        capture.terminate()
        capture.communicate(timeout=TIMEOUT)


def captured(file: Path) -> list[Any]:
    """Return the blocks of a capture."""
    with file.open("rb") as data:
        return list(FileScanner(data))


@NO_PCAPNG_WARNINGS
def test_packets_of_both_rings_are_captured(shared: Lab, tmp_path: Path) -> None:
    file = tmp_path / "a.pcapng"
    with capturing(shared, file) as capture:
        assert shared.ping_from_master() == 5
        name = str(shared.run_dir / "net0.ivshmem")
        line = ("-m", "vhostpci_guest", "pcap", name, "-w", str(file))
        second = run(sys.executable, *line)
        assert "another capture of this device" in second.stderr
        capture.send_signal(signal.SIGINT)
        assert capture.wait(TIMEOUT) == 0
    blocks = captured(file)
    names = [one.options["if_name"] for one in blocks[1:3]]
    assert names == ["net0-rx0", "net0-tx0"]
    pings = [one for one in blocks[3:-2] if len(one.packet_data) == 98]
    assert sorted(one.interface_id for one in pings) == [0] * 5 + [1] * 5
    assert [one.options["isb_ifrecv"] > 4 for one in blocks[-2:]] == [True, True]


@NO_PCAPNG_WARNINGS
def test_capture_of_one_ring_ends_after_its_count(shared: Lab, tmp_path: Path) -> None:
    file = tmp_path / "a.pcapng"
    words = ("--ring", "1", "--snaplen", "40", "-c", "3")
    with capturing(shared, file, *words) as capture:
        assert shared.ping_from_master() == 5
        assert capture.wait(TIMEOUT) == 0
    _section, interface, *packets, end = captured(file)
    assert interface.options["if_name"] == "net0-tx0"
    assert [len(one.packet_data) for one in packets] == [40, 40, 40]
    assert end.options["isb_ifrecv"] == 3


def test_memory_of_the_masters_own(tmp_path: Path) -> None:
    with private_network(), Lab(tmp_path) as lab:
        lab.start_daemon(*ATTACH)
        lab.start_agent()
        lab.start_master(Ram.of_nodes(MEMORY)).load()
        lab.wait_state("running")
        for found in both(lab, "--ring", "0"):
            (ring,) = found["rings"]
            places = [one.get("place", "") for one in ring["descriptors"]]
            assert any(place.startswith("window ") for place in places), ring
            assert not any(place.startswith("window 0 ") for place in places)

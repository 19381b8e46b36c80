# SPDX-License-Identifier: Apache-2.0
"""An agent that has its settings from a file, which changes while it serves."""

import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from tests.pings import ping, unbroken
from tests.process.lab import SLAVE_ADDRESS, Lab
from tests.waiting import wait_for

pytestmark = pytest.mark.process

DEVICE = ('tap = "vp0"', f'address = ["{SLAVE_ADDRESS}/24"]')


def file_of(lab: Lab) -> Path:
    return lab.run_dir / "guest.toml"


def write(lab: Lab, *device: str, top: str = "") -> None:
    socket = f'socket = "{lab.run_dir}/net0.ivshmem"'
    file_of(lab).write_text("\n".join((socket, top, "[device.net0]", *device)))


def reload(lab: Lab) -> subprocess.CompletedProcess[str]:
    pid = str(lab.agent.process.pid)
    return lab.run_in_slave(sys.executable, "-m", "vhostpci_guest", "reload", pid)


def changed(lab: Lab, *device: str) -> str:
    """Write the file and have it read again; return what was printed."""
    write(lab, *device)
    done = reload(lab)
    assert (done.returncode, done.stderr) == (0, "")
    return done.stdout.strip()


def tap(lab: Lab) -> dict[str, Any]:
    """Return what the slave's kernel says of the one TAP."""
    shown = json.loads(lab.run_in_slave("ip", "-j", "-d", "addr").stdout)
    (found,) = [
        link for link in shown if link.get("linkinfo", {}).get("info_kind") == "tun"
    ]
    assert isinstance(found, dict)
    return found


def addresses(lab: Lab) -> set[str]:
    return {one["local"] for one in tap(lab)["addr_info"] if one["scope"] == "global"}


@contextmanager
def start_shared(directory: Path) -> Iterator[Lab]:
    """An agent with a file that root alone may read; its master's driver is loaded."""
    with Lab(directory) as lab:
        lab.start_daemon()
        write(lab, *DEVICE)
        file_of(lab).chmod(0o600)
        argv = [sys.executable, "-m", "vhostpci_guest", "run", "--config"]
        lab.start_agent_by([*lab.slave.prefix, *argv, str(file_of(lab))])
        lab.start_master().load()
        lab.wait_carrier("UP")
        yield lab


def test_settings_of_a_tap_change_without_a_lost_packet(shared: Lab) -> None:
    changed(shared, *DEVICE)
    index, before = tap(shared)["ifindex"], shared.agent.said("carrier")
    with subprocess.Popen(
        (*ping(100, "-i", "0.02"), SLAVE_ADDRESS),
        stdout=subprocess.PIPE,
        text=True,
    ) as pings:
        assert changed(shared, *DEVICE, "mtu = 1400") == "net0: mtu changed"
        assert tap(shared)["mtu"] == 1400
        more = f'address = ["{SLAVE_ADDRESS}/24", "fd00::2/64"]'
        said = changed(shared, 'tap = "web0"', more)
        assert said == "net0: tap, mtu, address changed"
        assert (tap(shared)["ifname"], tap(shared)["mtu"]) == ("web0", 1500)
        assert addresses(shared) == {SLAVE_ADDRESS, "fd00::2"}
        assert changed(shared, *DEVICE) == "net0: address, tap changed"
        assert addresses(shared) == {SLAVE_ADDRESS}
        said, _ = pings.communicate()
    assert unbroken(said) == 100
    # The same TAP all the time, and with its carrier.
    assert (tap(shared)["ifindex"], shared.agent.said("carrier")) == (index, before)


def test_mac_changes_and_becomes_the_lasting_one_again(shared: Lab) -> None:
    changed(shared, *DEVICE)
    mac = tap(shared)["address"]
    own = 'mac = "02:00:00:00:00:07"'
    assert changed(shared, *DEVICE, own) == "net0: mac changed"
    assert tap(shared)["address"] == "02:00:00:00:00:07"
    assert changed(shared, *DEVICE) == "net0: mac changed"
    assert tap(shared)["address"] == mac


def test_tap_joins_and_leaves_a_bridge_that_is_new_in_the_file(shared: Lab) -> None:
    changed(shared, *DEVICE)
    assert (
        changed(shared, DEVICE[0], 'bridge = "br7"') == "net0: address, bridge changed"
    )
    assert tap(shared)["master"] == "br7"
    assert addresses(shared) == set()
    assert changed(shared, *DEVICE) == "net0: bridge, address changed"
    assert "master" not in tap(shared)
    shared.run_in_slave("ip", "link", "del", "br7")
    assert shared.ping_from_master() == 5


def test_data_plane_is_started_again_on_the_same_tap(shared: Lab) -> None:
    changed(shared, *DEVICE)
    index = tap(shared)["ifindex"]
    assert changed(shared, *DEVICE, "poll-us = 5") == "net0: started again for poll-us"
    assert shared.ping_from_master() == 5
    assert tap(shared)["ifindex"] == index
    assert addresses(shared) == {SLAVE_ADDRESS}


def test_mistakes_are_printed_and_change_nothing(shared: Lab) -> None:
    changed(shared, *DEVICE)
    write(shared, *DEVICE, "mtu = 12", "nmae = 3")
    done = reload(shared)
    assert done.returncode == 1
    file = file_of(shared)
    assert f"{file}:6: device.net0: mtu '12' is no MTU" in done.stderr
    assert f"{file}:7: device.net0: nmae: there is no such option" in done.stderr
    assert tap(shared)["mtu"] == 1500
    shared.agent.send(signal.SIGHUP)
    shared.agent.wait_log(f"SIGHUP: not reloaded, and nothing has changed: {file}:6:")
    assert shared.ping_from_master() == 5


def test_hangup_reads_the_file_again(shared: Lab) -> None:
    changed(shared, *DEVICE)
    write(shared, *DEVICE, "mtu = 1300")
    shared.agent.send(signal.SIGHUP)
    wait_for(lambda: tap(shared)["mtu"] == 1300, "SIGHUP is acted on")


def test_what_needs_a_new_agent_is_refused_in_words(shared: Lab) -> None:
    changed(shared, *DEVICE)
    write(shared, *DEVICE, "mtu = 1200", top='user = "nobody"\nbind = "vfio"')
    done = reload(shared)
    assert done.returncode == 1
    assert "bind, user changed: restart the agent for that" in done.stderr
    assert tap(shared)["mtu"] == 1500


def test_file_that_is_gone_changes_nothing(shared: Lab) -> None:
    changed(shared, *DEVICE)
    file_of(shared).unlink()
    done = reload(shared)
    assert "there is no such file" in done.stderr
    assert shared.ping_from_master() == 5
    changed(shared, *DEVICE)


def test_agent_without_a_file_says_so_and_goes_on(lab: Lab) -> None:
    lab.start_daemon()
    agent = lab.start_agent()
    agent.wait_log("TAP ")
    agent.send(signal.SIGHUP)
    agent.wait_log("started without --config")
    done = reload(lab)
    assert (done.returncode, agent.process.poll()) == (1, None)
    assert "started without --config" in done.stderr
    assert agent.end() == 0
    pid = agent.process.pid
    assert not [name for name in os.listdir("/run/vhostpci-guest") if str(pid) in name]

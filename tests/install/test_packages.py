# SPDX-License-Identifier: Apache-2.0
"""Our Debian packages: built, checked by lintian, and used under a real systemd.

  master                 hypervisor               slave: Debian, as apt installs it
10.77.0.1               vhostpci-host           10.77.0.2
  eth0 ------ vhost-user ----+---- ivshmem ------ vp0
virtio-net                              udev -> vhostpci-guest.service

The slave has the hypervisor's package, too, with its unit and AppArmor profile.
"""

import json
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from tests.install import packages, systemd_image
from tests.install.systemd_slave import AGENT, BOOT, SystemdSlave, booted, served
from tests.vm import traffic
from tests.vm.image import CHECKOUT
from tests.vm.pair import SLAVE_ADDRESS, Pair
from vhostpci_shared import __version__

pytestmark = pytest.mark.debs

HOST = "vhostpci-host"

FILES = {
    "vhostpci-host": (
        "usr/bin/vhostpci-host",
        "etc/vhostpci.toml",
        "etc/apparmor.d/vhostpci-host",
        "usr/lib/tmpfiles.d/vhostpci-host.conf",
        "usr/share/man/man8/vhostpci-host.8.gz",
        "usr/share/bash-completion/completions/vhostpci-host",
        "usr/share/zsh/vendor-completions/_vhostpci-host",
        "usr/share/fish/vendor_completions.d/vhostpci-host.fish",
        "usr/share/qemu/vhost-user/50-vhostpci.json",
    ),
    "vhostpci-guest": (
        "usr/bin/vhostpci-guest",
        "etc/vhostpci/guest.toml",
        "etc/default/vhostpci-guest",
        "usr/lib/sysusers.d/vhostpci-guest.conf",
        "usr/share/man/man8/vhostpci-guest.8.gz",
        "usr/share/bash-completion/completions/vhostpci-guest",
    ),
    "vhostpci-dkms": (f"usr/src/uio_vhostpci-{__version__}/dkms.conf",),
}


# A stream from the master, as long as it is not told to stop; both ends say how many
# bytes there were.  It leaves an emulated slave time for dpkg.
SEND = """
import signal, socket, sys, time
connection = socket.create_connection((sys.argv[1], 8000), timeout=120)
sent = stop = 0
def end(*_):
    global stop
    stop = 1
signal.signal(signal.SIGTERM, end)
while not stop:
    connection.sendall(bytes(65536))
    sent += 65536
    time.sleep(0.2)
print("sent", sent)
"""
RECEIVE = """
import socket
server = socket.create_server(("", 8000))
print("ready", flush=True)
connection = server.accept()[0]
received = 0
while data := connection.recv(65536):
    received += len(data)
    with open("/run/received", "w") as file:
        file.write(str(received))
print("received", received)
"""


@pytest.fixture(scope="module")
def pair(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Pair]:
    guest = systemd_image.build("bookworm", tmp_path_factory.mktemp("image"))
    with booted(guest, CHECKOUT / "logs/packages", iommu=True) as found:
        yield found


@pytest.fixture
def slave(pair: Pair) -> SystemdSlave:
    return served(pair)


@pytest.mark.parametrize("name", FILES)
def test_package_has_its_files(name: str) -> None:
    argv = ["dpkg-deb", "-c", str(packages.package(name))]
    listing = subprocess.run(argv, check=True, capture_output=True, text=True).stdout
    missing = [file for file in FILES[name] if f" ./{file}\n" not in listing]
    assert not missing


def test_selinux_policy_compiles(tmp_path: Path) -> None:
    for source in (CHECKOUT / "host/selinux").iterdir():
        (tmp_path / source.name).write_text(source.read_text())
    makefile = "/usr/share/selinux/devel/Makefile"
    done = subprocess.run(
        ["make", "-C", str(tmp_path), "-f", makefile, "vhostpci.pp"],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=300,
        env={"PATH": "/usr/sbin:/usr/bin:/sbin:/bin"},
    )
    assert done.returncode == 0, done.stdout


def test_udev_starts_the_agent_and_packets_cross(
    pair: Pair, slave: SystemdSlave
) -> None:
    # No link of systemd's starts it at boot.
    enabled = slave.run(f"systemctl is-enabled {AGENT}", check=False).stdout
    assert enabled.strip() == "disabled"
    assert slave.run("systemctl --failed --plain --no-legend").stdout == ""
    ping = pair.ping_both_ways()
    assert ping.received == ping.sent


def test_watchdog_ends_an_agent_that_hangs(pair: Pair, slave: SystemdSlave) -> None:
    before, index = slave.show(AGENT, "MainPID"), slave.index()
    slave.run(f"kill -STOP {before}")
    slave.wait_successor(before)
    pair.wait_link()
    assert slave.index() == index


def test_daemon_is_confined_and_lacks_nothing(slave: SystemdSlave) -> None:
    slave.wait_for(f"systemctl is-active {HOST}", BOOT)
    pid = slave.show(HOST, "MainPID")
    assert slave.peek(f"/proc/{pid}/attr/current") == "vhostpci-host (enforce)\n"
    device = b'[device.net0]\nmemory = "16M"\n'
    slave.put("/etc/vhostpci.toml", device)
    slave.run(f"systemctl reload {HOST}", timeout=120)
    slave.run(f"kill -KILL {pid}")
    slave.wait_until(
        lambda: slave.show(HOST, "MainPID") not in ("0", pid),
        lambda: slave.run(f"journalctl -u {HOST} --no-pager").stdout,
        BOOT,
    )
    slave.wait_for(f"systemctl is-active {HOST}", BOOT)
    listed = json.loads(slave.run("vhostpci-host list -j", timeout=120).stdout)
    assert [row["name"] for row in listed] == ["net0"]
    assert "DENIED" not in slave.run("dmesg").stdout


def test_units_are_as_safe_as_the_documents_say(slave: SystemdSlave) -> None:
    said = [
        slave.run(f"systemd-analyze security --no-pager {unit}", timeout=120).stdout
        for unit in (AGENT, HOST)
    ]
    levels = [text.partition(".service: ")[2].split()[0] for text in said]
    assert levels == ["4.4", "0.8"]


@contextmanager
def stream(pair: Pair, slave: SystemdSlave) -> Iterator[None]:
    """Send by TCP from the master while the block runs; all of it must arrive."""
    receiver = slave.spawn(["python3", "-c", RECEIVE])
    receiver.wait_said("ready", timeout=BOOT)
    sender = pair.master.spawn(["python3", "-c", SEND, SLAVE_ADDRESS])
    slave.wait_until(slave.received, lambda: "the first bytes", BOOT)
    yield
    before = slave.received()
    slave.wait_until(lambda: slave.received() > before, receiver.output, BOOT)
    assert sender.stop(BOOT) == 0
    assert receiver.wait(BOOT) == 0
    assert receiver.output().split()[-1] == sender.output().split()[-1]


def test_upgrade_of_the_agent_under_traffic(
    pair: Pair, slave: SystemdSlave, tmp_path: Path
) -> None:
    before, index = slave.show(AGENT, "MainPID"), slave.index()
    for name in ("python3-vhostpci-shared", HOST, AGENT):
        newer = packages.upgraded(name, tmp_path)
        slave.put(f"/root/{name}.deb", newer.read_bytes())
    pinging = traffic.pinging(pair.master, SLAVE_ADDRESS)
    with stream(pair, slave), pinging as ping:
        ping.wait_answers(5)
        slave.run("dpkg --force-confold -i /root/*.deb", timeout=BOOT)
        slave.wait_successor(before)
        pair.wait_link()
        ping.wait_answers(5)
    # ping may have only a dozen under way, and counts what it could not send.
    unsent = ping.output().count("No buffer space available")
    lost = ping.result().sent - ping.result().received - unsent
    assert lost <= packages.LOST, ping.output()
    assert slave.index() == index
    assert slave.run("systemctl --failed --plain --no-legend").stdout == ""

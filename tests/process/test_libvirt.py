# SPDX-License-Identifier: Apache-2.0
"""What we print for libvirt, and what we read of it, against the real one.

No domain is started here: tests/vm/test_libvirt.py does that.
"""

import asyncio
import sys
from collections.abc import Iterator
from pathlib import Path
from xml.etree import ElementTree as ET

import pytest

from tests.process.lab import Lab
from tests.process.program import run
from tests.vm.libvirtd import Libvirtd
from vhostpci_host.hotplug.libvirt_vm import LibvirtVm
from vhostpci_host.hotplug.virsh import Virsh
from vhostpci_host.hotplug.vm import VmAway

pytestmark = [pytest.mark.process, pytest.mark.libvirt]

PRINTED = {
    "arena master": "--role master --memory 1G",
    "arena slave": "--role slave --memory 1G",
    "attach master": "--role master --mode attach --memory 4G",
    "attach slave": "--role slave --mode attach --memory 4G --windows 2",
    "plugged arena": "--role slave --memory 1G --slave-libvirt switch",
    "listening master": "--role master --memory 1G --connect /run/web",
    "queue pairs": "--role master --memory 1G --queue-pairs 8 --vectors 0",
    "confined master": "--role master --mode attach --memory 4G --confined",
    "confined slave": "--role slave --mode attach --confined",
}
VIRT = "--role master --mode attach --memory 6400M --confined --machine virt"


@pytest.fixture(scope="module")
def libvirtd(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Libvirtd]:
    """A libvirtd of our own."""
    with Libvirtd(tmp_path_factory.mktemp("libvirtd")) as libvirtd:
        yield libvirtd


@pytest.fixture(
    params=[*PRINTED.values(), pytest.param(VIRT, marks=pytest.mark.arm64)],
    ids=[*PRINTED, "confined virt"],
)
def printed(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    """A file with a domain that we print."""
    file = tmp_path / "domain.xml"
    words = str(request.param).split()
    file.write_text(xml("a.b_c", "--type", "qemu", *words))
    return file


def xml(*words: str) -> str:
    done = run(sys.executable, "-m", "vhostpci_host", "xml", *words)
    assert not done.returncode, done.stderr
    return done.stdout


def test_printed_domain_is_valid(printed: Path) -> None:
    done = run("virt-xml-validate", str(printed), "domain")
    assert not done.returncode, done.stderr


def test_libvirt_takes_the_printed_domain(libvirtd: Libvirtd, printed: Path) -> None:
    name = ET.parse(printed).findtext("name", "")
    libvirtd.virsh("define", "--validate", str(printed))
    try:
        taken = ET.fromstring(libvirtd.virsh("dumpxml", name))
    finally:
        libvirtd.virsh("undefine", name)
    for path in ("devices/shmem/server", "devices/interface/source"):
        ours = [one.attrib for one in ET.parse(printed).iterfind(path)]
        assert [one.attrib for one in taken.iterfind(path)] == ours


def test_domain_of_a_daemon_that_plugs_is_printed_with_ports(
    lab: Lab, libvirtd: Libvirtd, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("LIBVIRT_DEFAULT_URI", libvirtd.uri)
    daemon = lab.start_daemon("--slave-libvirt", "switch")
    text = xml("net0", "--role", "slave", "--run-dir", str(lab.run_dir))
    domain = ET.fromstring(text)
    assert domain.findtext("name") == "switch"
    assert domain.find("devices/shmem") is None
    assert domain.find("devices/controller/alias") is not None
    daemon.wait_log("failed to get domain 'switch'; give a name")


def look(uri: str, domain: str) -> set[int]:
    """Ask a libvirt for a domain's windows."""

    async def work() -> set[int]:
        vm = LibvirtVm(domain, Virsh(uri))
        try:
            return await vm.plugged("web")
        finally:
            await vm.close()

    return asyncio.run(work())


def test_domain_that_is_not_there_is_named(libvirtd: Libvirtd) -> None:
    with pytest.raises(VmAway, match="failed to get domain 'nobody'; give a name"):
        look(libvirtd.uri, "nobody")


def test_domain_that_does_not_run_is_waited_for(libvirtd: Libvirtd) -> None:
    slave = xml("web", "--type", "qemu", "--role", "slave", "--memory", "1G")
    libvirtd.virsh("define", "/dev/stdin", text=slave)
    with pytest.raises(VmAway, match="waiting for domain 'web-slave'"):
        look(libvirtd.uri, "web-slave")


def test_error_for_a_libvirt_that_does_not_run_says_how_to_start_it() -> None:
    with pytest.raises(VmAway, match=r"does not answer: .*/nowhere.*; start libvirtd"):
        look("qemu+unix:///system?socket=/nowhere", "web-slave")

# SPDX-License-Identifier: Apache-2.0
"""tools/setup with programs of Debian's that only write down how they were called."""

import os
import subprocess
from pathlib import Path

import pytest

SETUP = Path(__file__).parents[3] / "tools/setup"

DEBIAN = 'ID=debian\nVERSION_ID="{}"\n'

FAKES = {
    "id": "echo 0",
    "dpkg": "echo amd64",
    "dpkg-query": 'cat "$HERE/installed"',
    "systemctl": 'echo "systemctl $*" >>"$HERE/calls"',
    # What it would do is in files; to install is to enable what is listed in one.
    "apt-get": """
echo "apt-get $*" >>"$HERE/calls"
case "$*" in
*--simulate*) cat "$HERE/plan" ;;
*--assume-no*) cat "$HERE/size"; exit 1 ;;
*-y*)
    if [ -e "$HERE/full" ]; then echo "E: no space left" >&2; exit 100; fi
    for unit in $(cat "$HERE/units"); do ln -s x "$WANTS/$unit"; done
    ;;
esac
""",
}

SIZE = """\
Reading package lists...
0 upgraded, 131 newly installed, 0 to remove and 6 not upgraded.
Need to get 102 MB of archives.
After this operation, 411 MB of additional disk space will be used.
Abort.
"""


class Machine:
    """A Debian 12 without any package, in a directory."""

    def __init__(self, here: Path) -> None:
        self.here = here
        self.wants = here / "etc/systemd/system/multi-user.target.wants"
        self.wants.mkdir(parents=True)
        (here / "bin").mkdir()
        for name, text in FAKES.items():
            (here / "bin" / name).write_text(f"#!/bin/sh\n{text}\n")
            (here / "bin" / name).chmod(0o755)
        for name in ("calls", "installed", "plan", "units"):
            (here / name).touch()
        (here / "size").write_text(SIZE)
        self.become(DEBIAN.format(12))
        self.make_virtualenv()

    def become(self, os_release: str) -> None:
        """Be another system."""
        (self.here / "etc/os-release").write_text(os_release)

    def make_virtualenv(self) -> None:
        """Have what setup would make in the cache, which is not tested here."""
        lines = SETUP.read_text().splitlines()
        there = [line for line in lines if line.startswith(("TOX='", "RICH='"))]
        assert len(there) == 2
        python = subprocess.check_output(["/usr/bin/python3", "--version"], text=True)
        stamp = self.here / "cache/venv/vhostpci-setup"
        stamp.parent.mkdir(parents=True)
        names = [line.split("'")[1] for line in there]
        stamp.write_text(python + "\n".join(names) + "\n")

    def setup(self, *argv: str) -> subprocess.CompletedProcess[str]:
        """Run tools/setup there."""
        environment = {
            "PATH": f"{self.here}/bin:{os.environ['PATH']}",
            "HERE": str(self.here),
            "WANTS": str(self.wants),
            "VHOSTPCI_SETUP_ROOT": str(self.here),
            "VHOSTPCI_CACHE": str(self.here / "cache"),
        }
        argv = (str(SETUP), *argv)
        return subprocess.run(argv, env=environment, capture_output=True, text=True)

    def calls(self) -> list[str]:
        """How programs were called that change the machine."""
        lines = (self.here / "calls").read_text().splitlines()
        return [line for line in lines if "--simulate" not in line]

    def installed_packages(self) -> set[str]:
        """The packages that apt-get was told to install."""
        lines = [line for line in self.calls() if " -y " in line]
        # The packages follow the last option.
        tails = [line.rpartition("Dpkg::Use-Pty=0")[2] for line in lines]
        return {name for tail in tails for name in tail.split()}


@pytest.fixture
def machine(tmp_path: Path) -> Machine:
    return Machine(tmp_path)


@pytest.mark.parametrize(
    "system",
    ["ID=ubuntu\nVERSION_ID=24.04\n", DEBIAN.format(11), "ID=debian\n"],
    ids=["another", "older", "testing"],
)
def test_any_other_system_gets_one_line_and_is_left_alone(
    machine: Machine, system: str
) -> None:
    machine.become(system)
    done = machine.setup("demo")
    assert done.returncode == 1
    assert "need Debian 12 or 13; this is" in done.stderr
    assert len(done.stderr.splitlines()) == 1
    assert not machine.calls()


@pytest.mark.parametrize("version", [12, 13])
def test_size_is_said_before_anything_is_installed(
    machine: Machine, version: int
) -> None:
    machine.become(DEBIAN.format(version))
    done = machine.setup("demo")
    assert not done.returncode, done.stderr
    size = done.stderr.index("Need to get 102 MB of archives.")
    assert size < done.stderr.index("After this operation, 411 MB")
    assert size < done.stderr.index("setup: installing")


def test_demo_installs_far_less_than_the_tests(machine: Machine) -> None:
    machine.setup("demo")
    few = machine.installed_packages()
    machine.setup("test")
    assert "qemu-system-x86" in few
    assert "libvirt-daemon" not in few
    assert len(few) < 10 < len(machine.installed_packages() - few)


def test_bench_installs_the_peer_and_not_what_only_tests_need(
    machine: Machine,
) -> None:
    machine.setup("bench")
    assert {"gcc", "libdpdk-dev", "pkgconf"} <= machine.installed_packages()
    assert "libvirt-daemon" not in machine.installed_packages()


def test_demo_with_our_module_installs_what_builds_it(machine: Machine) -> None:
    machine.setup("demo", "--bind", "kmod")
    assert {"make", "pahole"} <= machine.installed_packages()


def test_demo_that_stays_installs_what_opens_a_console(machine: Machine) -> None:
    machine.setup("demo", "--bind=kmod", "--keep")
    assert {"make", "socat"} <= machine.installed_packages()


def test_second_run_says_and_does_nothing(machine: Machine) -> None:
    machine.setup("test")
    packages = machine.installed_packages()
    # Debian 13 has a package of another name in the place of this one.
    other = {"libelf1": "libelf1t64\nii libelf1 (= 0.192-4), libelf1-abi"}
    lines = [f"ii {other.get(name, name)}\n" for name in packages]
    (machine.here / "installed").write_text("".join(lines))
    before = machine.calls()
    done = machine.setup("test")
    assert (done.returncode, done.stderr) == (0, "")
    assert machine.calls() == before


def test_demo_upgrades_no_package_and_names_those_it_would(machine: Machine) -> None:
    plan = "Inst libc6 [2.36-9] (2.36-10 Debian)\nInst gcc (4:12.2.0-3 Debian)\n"
    (machine.here / "plan").write_text(plan)
    done = machine.setup("demo")
    assert done.returncode == 1
    assert "Nothing was installed" in done.stderr
    assert done.stderr.endswith("apt-get install --only-upgrade libc6\n")
    assert not machine.installed_packages()


def test_machine_that_is_to_run_the_tests_may_be_upgraded(machine: Machine) -> None:
    plan = "Inst libc6 [2.36-9] (2.36-10 Debian)\nInst gcc (4:12.2.0-3 Debian)\n"
    (machine.here / "plan").write_text(plan)
    assert not machine.setup("test").returncode
    assert "gcc" in machine.installed_packages()


def test_service_that_a_package_enables_is_disabled_and_no_other(
    machine: Machine,
) -> None:
    (machine.wants / "cron.service").symlink_to("x")
    (machine.here / "run/systemd/system").mkdir(parents=True)
    (machine.here / "units").write_text("libvirtd.service getty@tty1.service")
    done = machine.setup("test")
    assert "disabling libvirtd.service" in done.stderr
    changes = [line for line in machine.calls() if line.startswith("systemctl")]
    assert changes == [
        "systemctl --quiet disable libvirtd.service",
        "systemctl --quiet stop libvirtd.service",
    ]


def test_service_is_not_stopped_where_systemd_does_not_run(machine: Machine) -> None:
    (machine.here / "units").write_text("libvirtd.service")
    machine.setup("test")
    changes = [line for line in machine.calls() if line.startswith("systemctl")]
    assert changes == ["systemctl --quiet disable libvirtd.service"]


def test_failure_of_apt_shows_what_it_said(machine: Machine) -> None:
    (machine.here / "full").touch()
    done = machine.setup("demo")
    assert done.returncode == 1
    assert "E: no space left" in done.stderr
    assert "apt-get failed" in done.stderr

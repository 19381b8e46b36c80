# SPDX-License-Identifier: Apache-2.0
"""The commands of docs/confined.md, word by word, up to QEMU itself.

the daemon of the text <---- qemu-args, xml, master-check ----> a QEMU that says which
                                                                arguments it was given
"""

import json
import os
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

from tests.install import readme
from tests.process.lab import Lab
from tests.vm.image import CHECKOUT

pytestmark = pytest.mark.process

TEXT = "docs/confined.md"
PROGRAMS = {
    "qemu-system-x86_64": """\
[ "$*" = -version ] && echo "QEMU emulator version 7.2.0" && exit
exec {python} -c 'import json, sys; print(json.dumps(sys.argv[1:]))' "$@"
""",
    "virsh": 'cat "$2"\n',
    "scp": 'cp "$1" copied.sh\n',
    "vhostpci-host": 'exec {python} -m vhostpci_host "$@" --run-dir {run_dir}\n',
}


class Shell:
    """A shell that finds these programs before all others."""

    def __init__(self, lab: Lab, directory: Path) -> None:
        self._lab, self._directory = lab, directory
        (directory / "bin").mkdir()
        for name, text in PROGRAMS.items():
            file = directory / "bin" / name
            python = shlex.quote(sys.executable)
            text = text.format(python=python, run_dir=lab.run_dir)
            file.write_text(f"#!/bin/sh\n{text}")
            file.chmod(0o755)

    def serve(self, command: str) -> None:
        """Start the daemon that a line of the text starts."""
        program, verb, name, *options = shlex.split(command, comments=True)
        assert (program, verb, name) == ("vhostpci-host", "run", "net0")
        self._lab.start_daemon(*options)

    def run(self, script: str) -> str:
        """Run a script that succeeds; return what it prints."""
        path = f"{self._directory / 'bin'}:{os.environ['PATH']}"
        done = subprocess.run(
            ["sh", "-c", script],
            cwd=self._directory,
            env=os.environ | {"PATH": path},
            capture_output=True,
            text=True,
            timeout=60,
        )
        assert done.returncode == 0, done.stderr
        return done.stdout


@pytest.fixture
def shell(lab: Lab, tmp_path: Path) -> Shell:
    return Shell(lab, tmp_path)


def test_qemu_is_given_the_memory_the_card_and_the_words(shell: Shell) -> None:
    (serve,) = readme.commands(TEXT, "## How to")
    shell.serve(serve)
    given = json.loads(shell.run(readme.script(TEXT, "--confined 32M\n```")))
    printed = shell.run("vhostpci-host qemu-args net0 --role master --json")
    words = shell.run("vhostpci-host qemu-args net0 --role master --kernel-args")
    assert given == [
        *("-accel", "kvm", "-cpu", "host"),
        *json.loads(printed),
        *("-kernel", "vmlinuz", "-initrd", "initrd"),
        *("-append", f"root=… {words.strip()}"),
    ]
    assert 'sysctl.vm.lowmem_reserve_ratio="1 1"' in given[-1]


def test_libvirt_is_given_a_domain_with_one_shared_cell(shell: Shell) -> None:
    (serve,) = readme.commands(TEXT, "### With libvirt")
    shell.serve(serve)
    domain = shell.run(readme.script(TEXT, "systemctl restart libvirtd"))
    assert "<name>net0-master</name>" in domain
    assert 'memory="128" unit="MiB" memAccess="shared"' in domain


@pytest.mark.parametrize(
    ("serve", "option"),
    [("## How to", ""), ("### With libvirt", " --memory 4G")],
    ids=["arena", "attach"],
)
def test_script_that_is_copied_looks(shell: Shell, serve: str, option: str) -> None:
    """An attach device's needs what the table has for that mode."""
    shell.serve(*readme.commands(TEXT, serve))
    assert option.strip() in (CHECKOUT / TEXT).read_text()
    script = readme.script(TEXT, "**Check the master from inside**")
    shell.run(script.replace("net0", f"net0{option}"))
    words = shell.run(
        f"vhostpci-host qemu-args net0{option} --role master --kernel-args"
    )
    assert f"WORDS='{words.strip()}'" in shell.run("cat copied.sh")


def test_script_of_a_command_that_failed_is_not_copied(shell: Shell) -> None:
    shell.serve(*readme.commands(TEXT, "### With libvirt"))
    (command,) = readme.commands(TEXT, "**Check the master from inside**")
    shell.run(f"if {command}; then exit 1; fi; test ! -e copied.sh")

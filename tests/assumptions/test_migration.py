# SPDX-License-Identifier: Apache-2.0
"""QEMU refuses to migrate or save a VM of ours, and both go on as before.

daemon ──vhost-user, ivshmem──► QEMU: firmware alone ◄──QMP── test
"""

import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from tests.vm import qemu
from tests.vm.daemon import Daemon
from tests.vm.qmp import Qmp, QmpError
from tests.waiting import when_listening

pytestmark = pytest.mark.vm


@contextmanager
def started(directory: Path, *args: str) -> Iterator[Qmp]:
    """Start a QEMU whose guest is its firmware."""
    monitor = directory / "qmp"
    command = [
        *(qemu.binary(), "-M", "q35", "-accel", "tcg", "-nodefaults"),
        *("-display", "none", "-qmp", f"unix:{monitor},server=on,wait=off"),
        *args,
    ]
    with subprocess.Popen(command) as process:
        try:
            with when_listening(lambda: Qmp(monitor)) as qmp:
                yield qmp
        finally:
            process.kill()


@pytest.mark.parametrize(
    ("role", "why"),
    [("master", "lacks VHOST_USER_PROTOCOL_F_LOG_SHMFD"), ("slave", "'peer mode'")],
)
def test_vm_is_neither_migrated_nor_saved(tmp_path: Path, role: str, why: str) -> None:
    with Daemon("vm", logs=tmp_path, memory="64M") as daemon:
        more = ["-m", "64M"] if role == "slave" else []
        with started(tmp_path, *more, *daemon.qemu_args(role)) as qmp:
            # What `virsh save`, `managedsave` and a snapshot with memory do, too.
            with pytest.raises(QmpError, match=why):
                qmp.execute("migrate", {"uri": "exec:cat >/dev/null"})
            line = {"command-line": "savevm now"}
            assert why in qmp.execute("human-monitor-command", line)
            assert qmp.execute("query-status", {})["running"]
            connected = daemon.status()[role]
            assert connected is not None

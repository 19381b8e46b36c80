# SPDX-License-Identifier: Apache-2.0
"""Ask the daemons, and a master's QEMU if its monitor is named: the only questions."""

import asyncio
import logging
import re
import shutil
import sys
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

from vhostpci_shared.findings import CannotLook
from vhostpci_shared.machine import Machine

from .. import __version__
from ..config.device import daemon_control
from ..daemon import control_client
from ..errors import HostError, NoDaemon
from ..interfaces import FAILED, Json
from .hypervisor import BACKEND, VHOST_USER, Hypervisor, Silent

QEMU = "qemu-system-x86_64"
_MONITOR_TIME = 5.0
"""Seconds that a monitor has for each step; another program may use it."""


def gather(
    run_dir: Path, name: str | None, qemu: str | None, monitor: str | None
) -> Hypervisor:
    """Return the machine, with what its daemons say.

    Args:
        run_dir: where the daemons' sockets are.
        name: the device to look at; None: all.
        qemu: the QEMU to look at; None: the one in PATH.
        monitor: the QMP socket of that device's master; None: it is not asked.

    Raises:
        HostError: this user may not look into the directory, or there is no such
            device or program.
    """
    program = shutil.which(qemu or QEMU)
    if qemu is not None and program is None:
        raise HostError(
            f"--qemu {qemu}: there is no such program; give its path", code="H088"
        )
    devices, silent = _ask_all(run_dir)
    if name is not None:
        devices = {key: one for key, one in devices.items() if key == name}
        silent = [one for one in silent if Path(one.path).stem in (name, "control")]
        if not devices and not silent:
            raise HostError(
                f"no daemon serves a device {name} in {run_dir}", code="H089"
            )
    return Hypervisor(
        machine=Machine(),
        run_dir=str(run_dir),
        version=__version__,
        program=str(Path(sys.argv[0]).absolute()),
        devices=tuple(devices[one] for one in sorted(devices)),
        silent=tuple(silent),
        qemu=program,
        memdevs=None if monitor is None else _asker(monitor, _memdevs),
        plugged=None if monitor is None else _asker(monitor, _plugged),
    )


def _ask_all(run_dir: Path) -> tuple[dict[str, Json], list[Silent]]:
    """Return the status of all devices by their names, and who did not answer."""
    devices: dict[str, Json] = {}
    silent: list[Silent] = []
    many = daemon_control(run_dir)
    try:
        for row in control_client.ask(many, {"command": "list"}):
            if row["state"] == FAILED:  # its own control socket is closed
                devices[row["name"]] = row
    except NoDaemon:
        if many.exists():
            silent.append(_killed(many))
    except HostError as error:
        silent.append(_silent(many, error))
    for name in sorted(control_client.devices(run_dir)):
        path = run_dir / f"{name}.control"
        try:
            request = {"command": "status", "name": name}
            devices[name] = control_client.ask(path, request)
        except NoDaemon:
            if path.exists():  # else it has ended meanwhile
                silent.append(_killed(path))
        except HostError as error:
            silent.append(_silent(path, error))
    return devices, silent


def _killed(path: Path) -> Silent:
    return Silent(str(path), "no process listens there", killed=True)


def _silent(path: Path, error: HostError) -> Silent:
    forbidden = isinstance(error.__cause__, PermissionError)
    return Silent(str(path), str(error), forbidden=forbidden)


Execute = Callable[..., Awaitable[Any]]
"""Executes one command of QMP's, with these arguments."""


def _asker(
    monitor: str, questions: Callable[[Execute], Awaitable[list[Json]]]
) -> Callable[[], list[Json]]:
    """Return what asks a QEMU by its monitor."""

    def ask() -> list[Json]:
        # Imported here: the library takes longer than all other checks.
        from qemu.qmp import QMPError

        logging.getLogger("qemu.qmp").setLevel(logging.CRITICAL)
        try:
            return asyncio.run(_query(monitor, questions))
        except TimeoutError:
            raise CannotLook(
                f"{monitor} does not answer: another program uses this monitor"
            ) from None
        except (OSError, EOFError, QMPError) as error:
            raise CannotLook(f"{monitor}: {error}") from error
        except (LookupError, TypeError, AttributeError):
            raise CannotLook(f"{monitor} does not answer as a QEMU does") from None

    return ask


async def _query(
    monitor: str, questions: Callable[[Execute], Awaitable[list[Json]]]
) -> list[Json]:
    from qemu.qmp import QMPClient

    client = QMPClient()
    await asyncio.wait_for(client.connect(monitor), _MONITOR_TIME)

    async def execute(command: str, **arguments: str) -> object:
        answer = client.execute(command, arguments)
        return await asyncio.wait_for(answer, _MONITOR_TIME)

    try:
        return await questions(execute)
    finally:
        await client.disconnect()


async def _memdevs(execute: Execute) -> list[Json]:
    found = await execute("query-memdev")
    return list(found) if isinstance(found, list) else []


async def _plugged(execute: Execute) -> list[Json]:
    """Return the devices of -device and device_add, each as its values there."""
    found, of_vhost_user = [], await _of_vhost_user(execute)
    for path in ("/machine/peripheral", "/machine/peripheral-anon"):
        for one in await execute("qom-list", path=path):
            kind = one["type"]
            if not kind.startswith("child<"):
                continue
            device = {"driver": kind.removeprefix("child<").removesuffix(">")}
            if device["driver"].startswith(("virtio-", "vhost-")):
                where = f"{path}/{one['name']}"
                on = await execute("qom-get", path=where, property=_PLATFORM)
                device[_PLATFORM] = "on" if on else "off"
                if device["driver"].startswith("virtio-net"):
                    netdev = await execute("qom-get", path=where, property="netdev")
                    device[BACKEND] = VHOST_USER if netdev in of_vhost_user else ""
            found.append(device)
    return found


async def _of_vhost_user(execute: Execute) -> set[str]:
    """Return the names of the -netdev and netdev_add whose type is vhost-user."""
    # No command of QMP's says which type a netdev has.
    line = {"command-line": "info network"}
    said = await execute("human-monitor-command", **line)
    return set(re.findall(rf"^[ \\]*(\S+): index=0,type={VHOST_USER},", said, re.M))


_PLATFORM = "iommu_platform"

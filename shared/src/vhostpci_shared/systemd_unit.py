# SPDX-License-Identifier: Apache-2.0
"""Look at a systemd unit of ours: whether its program and its user are there."""

from collections.abc import Iterator
from dataclasses import dataclass

from .findings import CannotLook, Seen, error, ok
from .machine import Machine

_DIRECTORIES = (
    "/etc/systemd/system",
    "/run/systemd/system",
    "/usr/local/lib/systemd/system",
    "/lib/systemd/system",
    "/usr/lib/systemd/system",
)
"""Where systemd looks, the first first (systemd.unit(5))."""
_PATH = ("/usr/local/sbin", "/usr/local/bin", "/usr/sbin", "/usr/bin", "/sbin", "/bin")
"""Where systemd looks for a program without a path (systemd.service(5))."""


@dataclass(frozen=True, slots=True)
class Unit:
    """A service, by its file and its drop-ins."""

    path: str
    program: str
    user: str
    """Empty for root."""


def look_at_unit(machine: Machine, name: str, ours: str) -> Iterator[Seen]:
    """Yield what is wrong with a unit, or that nothing is.

    Args:
        machine: where it is.
        name: the unit's.
        ours: the path of the program that the unit is to start.

    Raises:
        CannotLook: there is no such unit.
    """
    unit = _read(machine, name)
    names = (line.partition(":")[0] for line in _passwd(machine))
    if unit.user and not unit.user.isdecimal() and unit.user not in names:
        yield error(
            unit.path,
            f"User={unit.user}, who is not there",
            means="systemd does not start the unit",
            repair=f"useradd --system {unit.user}",
        )
    elif _is_there(machine, unit.program):
        yield ok(unit.path, f"ExecStart={unit.program}")
    else:
        path = unit.program
        target = path if path.startswith("/") else f"/usr/local/bin/{path}"
        yield error(
            unit.path,
            f"ExecStart={path}, which is not there",
            means="systemd does not look into a virtual environment, where pip puts "
            "the program if the distribution manages the system's Python (PEP 668)",
            repair=f"ln -s {ours} {target}",
        )


def _passwd(machine: Machine) -> list[str]:
    return (machine.text_if_there("/etc/passwd") or "").splitlines()


def _is_there(machine: Machine, program: str) -> bool:
    if program.startswith("/"):
        return machine.exists(program)
    return any(machine.exists(f"{directory}/{program}") for directory in _PATH)


def _read(machine: Machine, name: str) -> Unit:
    for directory in _DIRECTORIES:
        path = f"{directory}/{name}"
        text = machine.text_if_there(path)
        if text is None:
            continue
        drop_ins = f"/etc/systemd/system/{name}.d"
        for entry in machine.names_if_there(drop_ins):
            text += "\n" + machine.text(f"{drop_ins}/{entry}")
        program = _last(text, "ExecStart").split()
        if program:
            # Signs before the path change how it is started, and not what.
            return Unit(path, program[0].lstrip("@-:+!"), _last(text, "User"))
    raise CannotLook(f"there is no {name}: it is started by other means")


def _last(text: str, key: str) -> str:
    """Return the value that counts: an empty one clears those before it."""
    lines = (line.strip() for line in text.splitlines())
    found = [one.partition("=")[2] for one in lines if one.startswith(f"{key}=")]
    return found[-1].strip() if found else ""

#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""Write the completions of both programs for bash, zsh and fish.

    tools/completions.py DIRECTORY

makes bash/PROGRAM, zsh/_PROGRAM and fish/PROGRAM.fish there, from the programs' own
tables of options.  bash and zsh are shtab's work; the shtab of Debian 12 and 13 does
not know fish.
"""

import argparse
import shlex
import sys
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

import shtab

from tools.programs import (
    PROGRAMS,
    Program,
    arguments,
    commands,
    help_of,
    value_of,
)

FILES = ("FILE", "PATH", "SOCKET", "PROGRAM")
"""What stands for a value that is the name of a file."""
DIRECTORIES = ("DIR", "DIRECTORY")

PLACES = {"bash": "bash/{}", "zsh": "zsh/_{}", "fish": "fish/{}.fish"}


def script(program: Program, shell: str) -> str:
    """Return a program's completions for a shell."""
    if shell == "fish":
        return "\n".join(_fish(program)) + "\n"
    for parser in (program.parser, *(each.parser for each in commands(program.parser))):
        for action in arguments(parser):
            if kind := _kind(action):
                # shtab looks for this attribute, which argparse does not have.
                setattr(action, "complete", kind)  # noqa: B010
    return shtab.complete(program.parser, shell=shell)


def _kind(action: argparse.Action) -> Mapping[str, object] | None:
    """Return what shtab calls the kind of an argument's value, if it is a file."""
    value = value_of(action)
    if value in FILES:
        return shtab.FILE
    return shtab.DIRECTORY if value in DIRECTORIES else None


def _fish(program: Program) -> Iterator[str]:
    yield "# Made by tools/completions.py from the options of the program."
    name = program.name
    yield f"complete -c {name} -f"
    yield from _fish_options(name, program.parser, "__fish_use_subcommand")
    for command in commands(program.parser):
        text = shlex.quote(command.help)
        yield f"complete -c {name} -n __fish_use_subcommand -a {command.name} -d {text}"
        seen = f"__fish_seen_subcommand_from {command.name}"
        yield from _fish_options(name, command.parser, seen)


def _fish_options(
    name: str, parser: argparse.ArgumentParser, when: str
) -> Iterator[str]:
    for action in arguments(parser):
        if not action.option_strings:
            # Words without an option: only those that name files are known.
            if _kind(action):
                yield f"complete -c {name} -n {shlex.quote(when)} -F"
            continue
        words = [f"complete -c {name} -n {shlex.quote(when)}"]
        words += [
            f"-l {option[2:]}" if option.startswith("--") else f"-s {option[1:]}"
            for option in action.option_strings
        ]
        words += [_fish_value(action), f"-d {shlex.quote(help_of(parser, action))}"]
        yield " ".join(word for word in words if word)


def _fish_value(action: argparse.Action) -> str:
    """Return what fish has to know about an option's value."""
    if not value_of(action):
        return ""
    if action.choices is not None:
        return f"-x -a {shlex.quote(' '.join(map(str, action.choices)))}"
    return "-r -F" if _kind(action) else "-x"


def main(argv: Sequence[str]) -> int:
    """Write the scripts; return the exit status."""
    if len(argv) != 1:
        print("usage: tools/completions.py DIRECTORY", file=sys.stderr)
        return 2
    for program in PROGRAMS:
        for shell, place in PLACES.items():
            path = Path(argv[0]) / place.format(program.name)
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(script(program, shell))
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))

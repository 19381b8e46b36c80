#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""Write the man pages of both programs, from their own tables of options.

    tools/man.py DIRECTORY

makes vhostpci-host.8 and vhostpci-guest.8 there.  SOURCE_DATE_EPOCH gives their date.
"""

import argparse
import os
import sys
import time
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

from tools.programs import (
    DIAGNOSTICS,
    EXIT_STATUS,
    PROGRAMS,
    VERSION,
    Command,
    Program,
    arguments,
    commands,
    help_of,
    value_of,
)

SECTION = "8"


def page(program: Program) -> str:
    """Return a program's man page."""
    return "\n".join(_lines(program)) + "\n"


def _lines(program: Program) -> Iterator[str]:
    parser = program.parser
    name = escaped(program.name)
    yield '.\\" Made by tools/man.py from the options of the program.'
    yield (
        f'.TH {name.upper()} {SECTION} "{_date()}" "vhostpci {VERSION}" '
        '"System Administration"'
    )
    # Hyphenated and stretched lines are hard to read among options.
    yield from (".nh", ".ad l")
    yield from (".SH NAME", f"{name} \\- {escaped(program.purpose)}")
    yield from (".SH SYNOPSIS", f".B {name}", r".RI [ OPTION ]...")
    yield r".I COMMAND"
    yield r".RI [ ARGUMENT ]..."
    yield from (".SH DESCRIPTION", *_text(parser.description))
    yield from (".SH OPTIONS", *_arguments(parser))
    yield ".SH COMMANDS"
    for command in commands(parser):
        yield from _command(program, command)
    yield from (".SH EXIT STATUS", *_table(EXIT_STATUS.items()))
    yield from (".SH DIAGNOSTICS", *_text(DIAGNOSTICS))
    yield from (".SH FILES", *_table(program.files.items(), font="I"))
    yield ".SH SEE ALSO"
    yield ",\n".join(
        f".BR {escaped(name)} ({section})" for name, section in program.see_also
    )


def _command(program: Program, command: Command) -> Iterator[str]:
    yield f'.SS "{escaped(f"{program.name} {command.name}")}"'
    usage = command.parser.format_usage().removeprefix("usage: ")
    yield from (".PP", f".B {escaped(' '.join(usage.split()))}", ".PP")
    yield from _text(command.parser.description)
    # Every command has --help.
    yield from _arguments(command.parser, hidden=("help",))
    if command.parser.epilog:
        yield from (".PP", *_text(command.parser.epilog))


def _arguments(
    parser: argparse.ArgumentParser, hidden: Sequence[str] = ()
) -> Iterator[str]:
    for action in arguments(parser):
        if action.dest in hidden:
            continue
        yield from (".TP", _head(action), *_text(help_of(parser, action)))


def _head(action: argparse.Action) -> str:
    """Return the line that names an argument: its options in bold, its value not."""
    value = escaped(value_of(action))
    if not action.option_strings:
        return rf"\fI{value}\fR"
    names = ", ".join(rf"\fB{escaped(name)}\fR" for name in action.option_strings)
    return rf"{names} \fI{value}\fR" if value else names


def _table(rows: Iterable[tuple[str, str]], font: str = "B") -> Iterator[str]:
    for name, text in rows:
        yield from (".TP", f".{font} {escaped(name)}", *_text(text))


def _text(text: str | None) -> Iterator[str]:
    """Return a paragraph of prose; it ends as a sentence does."""
    words = " ".join((text or "").split())
    if words:
        sentence = words[0].upper() + words[1:]
        yield escaped(sentence if sentence.endswith((".", ")")) else sentence + ".")


def escaped(text: str) -> str:
    """Return a text so that roff takes no part of it for an order."""
    # "\-" is the sign that users type, in a page that they copy from; "-" a hyphen.
    plain = text.replace("\\", r"\e").replace("-", r"\-")
    return rf"\&{plain}" if plain.startswith((".", "'")) else plain


def _date() -> str:
    epoch = os.environ.get("SOURCE_DATE_EPOCH")
    return time.strftime("%Y-%m-%d", time.gmtime(int(epoch))) if epoch else ""


def main(argv: Sequence[str]) -> int:
    """Write the pages; return the exit status."""
    if len(argv) != 1:
        print("usage: tools/man.py DIRECTORY", file=sys.stderr)
        return 2
    directory = Path(argv[0])
    directory.mkdir(parents=True, exist_ok=True)
    for program in PROGRAMS:
        (directory / f"{program.name}.{SECTION}").write_text(page(program))
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))

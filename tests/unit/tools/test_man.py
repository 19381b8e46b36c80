# SPDX-License-Identifier: Apache-2.0
"""The man pages: everything that the parsers know is there, and roff-safe.

lintian reads the pages with `man --warnings`, too, when the packages are built.
"""

import argparse
import os
import shutil
import subprocess
from pathlib import Path

import pytest

from tools import man
from tools.programs import GUEST, HOST, PROGRAMS, Program, arguments, commands

EVERY = pytest.mark.parametrize("program", PROGRAMS, ids=lambda each: each.name)


@EVERY
def test_page_has_every_command_and_option(program: Program) -> None:
    page = man.page(program)
    for command in commands(program.parser):
        assert f'.SS "{man.escaped(f"{program.name} {command.name}")}"' in page
        for action in arguments(command.parser):
            if action.dest != "help":
                assert all(
                    rf"\fB{man.escaped(name)}\fR" in page
                    for name in action.option_strings
                )


def warnings(page: Path) -> str:
    """Return what man has to say of a page, as lintian asks it."""
    done = subprocess.run(
        ["man", "--warnings", "-E", "UTF-8", "-l", "-Tutf8", "-Z", str(page)],
        env=os.environ | {"LC_ALL": "C.UTF-8", "MANROFFSEQ": "", "MANWIDTH": "80"},
        check=True,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
        timeout=60,
    )
    return done.stderr


@pytest.mark.skipif(not shutil.which("man"), reason="missing: man (man-db)")
@EVERY
def test_man_has_no_warning(program: Program, tmp_path: Path) -> None:
    page = tmp_path / f"{program.name}.8"
    page.write_text(man.page(program))
    assert warnings(page) == ""
    page.write_text(f"{man.page(program)}.nosuchmacro\n")
    assert "nosuchmacro" in warnings(page)


@EVERY
def test_every_command_and_argument_has_a_help(program: Program) -> None:
    for command in commands(program.parser):
        assert command.help, command.name
        assert command.parser.description, command.name
        for action in arguments(command.parser):
            assert action.help, (command.name, action.dest)


@pytest.mark.parametrize(
    ("text", "roff"),
    [("--tap NAME", r"\-\-tap NAME"), (".so", r"\&.so"), (r"\fB", r"\efB")],
)
def test_text_gives_roff_no_order(text: str, roff: str) -> None:
    assert man.escaped(text) == roff


def test_value_and_default_of_an_option_are_filled_in() -> None:
    parser = argparse.ArgumentParser(prog="p", description="d")
    commands = parser.add_subparsers()
    command = commands.add_parser("go", help="go", description="go")
    command.add_argument("--far", choices=["a", "b"], default="b", help="%(default)s!")
    page = man.page(Program(parser, "purpose", {}, ()))
    assert ".TP\n\\fB\\-\\-far\\fR \\fI{a,b}\\fR\nB!." in page


def test_main_writes_both_pages(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SOURCE_DATE_EPOCH", "86400")
    assert man.main([str(tmp_path / "new")]) == 0
    pages = sorted((tmp_path / "new").iterdir())
    assert [page.name for page in pages] == [f"{p.name}.8" for p in (GUEST, HOST)]
    assert all('8 "1970-01-02" "vhostpci ' in page.read_text() for page in pages)

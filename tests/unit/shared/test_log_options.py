# SPDX-License-Identifier: Apache-2.0
"""The options of the log: which lines come, and in which form."""

import argparse
import json
import logging
import os
import sys
from pathlib import Path

import pytest

from vhostpci_guest.cli import main as guest
from vhostpci_host.cli import main as host
from vhostpci_host.keeper import log_line
from vhostpci_shared import log_options


def parsers() -> argparse.ArgumentParser:
    """Return a program with one command, both of which take the options."""
    top = argparse.ArgumentParser()
    log_options.add_to(top)
    command = top.add_subparsers(dest="command").add_parser("run")
    log_options.add_to(command)
    return top


@pytest.mark.parametrize(
    ("words", "level"),
    [
        ("run", logging.INFO),
        ("-v run", logging.DEBUG),
        ("run -v", logging.DEBUG),
        ("-q run", logging.WARNING),
        ("run --quiet", logging.WARNING),
        ("--log-level error run", logging.ERROR),
        ("-v run --log-level error", logging.ERROR),
        ("-v run -q", logging.WARNING),
    ],
)
def test_level_stands_before_the_command_or_behind_it(words: str, level: int) -> None:
    assert log_options.level_of(parsers().parse_args(words.split())) == level


def record(level: int, text: str) -> logging.LogRecord:
    return logging.LogRecord("source", level, "", 0, text, None, None)


def failed(text: str) -> logging.LogRecord:
    """Return the record of an exception."""
    try:
        raise ValueError("why")
    except ValueError:
        why = sys.exc_info()
    return logging.LogRecord("source", logging.ERROR, "", 0, text, None, why)


@pytest.mark.parametrize(
    ("level", "prefix"),
    [
        (logging.CRITICAL, "<2>"),
        (logging.ERROR, "<3>"),
        (logging.WARNING, "<4>"),
        (logging.INFO, "<6>"),
        (logging.DEBUG, "<7>"),
    ],
)
def test_journal_has_priorities_and_neither_date_nor_name(
    level: int, prefix: str
) -> None:
    form = log_options.make("journal", "vhostpci-host", dated=True)
    assert form.format(record(level, "hello")) == f"{prefix}hello"


def test_each_line_of_a_traceback_has_its_priority() -> None:
    lines = log_options.make("journal", "p", dated=False).format(failed("no"))
    assert len(lines.splitlines()) > 2
    assert all(line.startswith("<3>") for line in lines.splitlines())


def test_json_is_one_object_a_line_whatever_the_text() -> None:
    form = log_options.make("json", "vhostpci-guest", dated=False)
    line = form.format(failed("two\nlines \x1b[31m"))
    assert "\n" not in line
    assert "\x1b" not in line
    said = json.loads(line)
    assert said["message"] == "two\nlines \x1b[31m"
    assert said["level"] == "error"
    assert said["program"] == "vhostpci-guest"
    assert "ValueError: why" in said["exception"]


def test_stderr_leads_to_the_journal_only_if_it_is_that_very_file(
    tmp_path: Path,
) -> None:
    with (tmp_path / "a").open("w") as file, (tmp_path / "b").open("w") as other:
        found = os.fstat(file.fileno())
        journal = {"JOURNAL_STREAM": f"{found.st_dev}:{found.st_ino}"}
        assert log_options.leads_to_journal(journal, file.fileno())
        assert not log_options.leads_to_journal(journal, other.fileno())
        assert not log_options.leads_to_journal({}, file.fileno())


@pytest.mark.parametrize("program", ["vhostpci-host", "vhostpci-guest"])
@pytest.mark.parametrize("words", ["{} status", "status {}"])
def test_last_words_have_the_form_of_the_log(
    program: str, words: str, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    line = words.format("--log-format=json").split()
    if program == "vhostpci-host":
        assert host.main([*line, "web", "--run-dir", str(tmp_path)]) == 1
        said = json.loads(capsys.readouterr().err)
        assert (said["program"], said["level"]) == (program, "error")
    else:
        assert guest.parser(line).parse_args(line).log_format == "json"


@pytest.mark.parametrize("form", ["text", "json", "journal"])
def test_keepers_lines_have_the_form_of_the_daemons(form: str) -> None:
    assert log_line.form_of(["run", "web", "--log-format", form]) == form
    assert log_line.form_of([f"--log-format={form}", "run", "web"]) == form
    assert log_line.form_of([]) == "text"
    line = log_line.line("the daemon hangs", form).decode()
    assert line.count("\n") == 1
    said = json.loads(line)["message"] if form == "json" else line.rstrip("\n")
    assert said.endswith("keeper: the daemon hangs")
    assert said.startswith("<4>") == (form == "journal")

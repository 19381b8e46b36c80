# SPDX-License-Identifier: Apache-2.0
"""The options of the log, alike for daemon and agent: how much, and in which form.

`--log-format text` is for eyes, `json` for programs (one object a line), `journal` for
journald: it takes the priority from a `<6>` in front of a line, and adds the date and
the program's name by itself.  Without the option it is `journal` where stderr leads to
the journal, and `text` elsewhere.
"""

import argparse
import json
import logging
import os
import time
from collections.abc import Mapping, Sequence

from .errors import code_of, with_code
from .log_writer import STDERR

LEVELS = {
    "debug": logging.DEBUG,
    "info": logging.INFO,
    "warning": logging.WARNING,
    "error": logging.ERROR,
}
TEXT, JSON, JOURNAL = "text", "json", "journal"
FORMATS = (TEXT, JSON, JOURNAL)

# syslog(3)'s priorities, which sd-daemon(3) has in front of a line.
_PRIORITIES = (
    (logging.CRITICAL, 2),
    (logging.ERROR, 3),
    (logging.WARNING, 4),
    (logging.INFO, 6),
    (logging.NOTSET, 7),
)


# Else a command's default would replace what was given before the command.
_NONE = argparse.SUPPRESS


def add_to(parser: argparse.ArgumentParser) -> None:
    """Add the options to a parser: of the whole program, and of each command.

    So they may stand before the command and behind it.  Of several that say how much
    is logged, the last one holds; behind the command is later.
    """
    group = parser.add_argument_group("log")
    _add_levels(group)
    group.add_argument(
        "--log-format",
        choices=FORMATS,
        default=_NONE,
        help="how lines of the log look: text; json, one object a line; journal, with "
        "the priority in front as journald reads it (default: journal if standard "
        "error leads to the journal, else text)",
    )


def _add_levels(group: argparse._ArgumentGroup) -> None:
    group.add_argument(
        "-v",
        "--verbose",
        dest="log_level",
        action="store_const",
        const="debug",
        default=_NONE,
        help="log more: --log-level debug",
    )
    group.add_argument(
        "-q",
        "--quiet",
        dest="log_level",
        action="store_const",
        const="warning",
        default=_NONE,
        help="log warnings and errors only: --log-level warning",
    )
    group.add_argument(
        "--log-level",
        choices=tuple(LEVELS),
        default=_NONE,
        help="the least important lines that are logged (default: info)",
    )


def level_of(arguments: argparse.Namespace) -> int:
    """Return the level that the options ask for."""
    return LEVELS[getattr(arguments, "log_level", "info")]


def formatter_of(
    arguments: argparse.Namespace, program: str, *, dated: bool
) -> logging.Formatter:
    """Return what makes lines of records in the form that the options ask for.

    Args:
        arguments: the options.
        program: its name, which begins a line of text.
        dated: whether a line of text begins with its time in place of the name.
    """
    return make(getattr(arguments, "log_format", None), program, dated=dated)


def make(form: str | None, program: str, *, dated: bool) -> logging.Formatter:
    """Return what makes lines of records; without a form, the fitting one."""
    form = form or (JOURNAL if leads_to_journal(os.environ) else TEXT)
    if form == JOURNAL:
        return JournalFormatter()
    if form == JSON:
        return JsonFormatter(program)
    if dated:
        return TextFormatter("%(asctime)s %(levelname).1s %(message)s")
    return TextFormatter(f"{program}: %(message)s")


def error_line(words: Sequence[str], program: str, error: object) -> str:
    """Return the line that says why a program ends, without its line end.

    Args:
        words: the command line, which may not be a valid one.
        program: its name.
        error: the reason, perhaps with a code.
    """
    record = logging.LogRecord(program, logging.ERROR, "", 0, "%s", (error,), None)
    return make(_form(words), program, dated=False).format(record)


def _form(words: Sequence[str]) -> str | None:
    """Return the last value of --log-format among the words of a command line."""
    found = None
    for word, after in zip(words, [*words[1:], ""], strict=True):
        name, equals, value = word.partition("=")
        if name == "--log-format":
            found = value if equals else after
    return found if found in FORMATS else None


def leads_to_journal(environment: Mapping[str, str], fd: int = STDERR) -> bool:
    """Whether a descriptor is the stream to journald that systemd has made.

    JOURNAL_STREAM names it by device and inode, since a child may have inherited the
    variable, and its stderr may be another file (systemd.exec(5)).
    """
    try:
        found = os.fstat(fd)
    except OSError:
        return False  # stderr is closed
    return environment.get("JOURNAL_STREAM") == f"{found.st_dev}:{found.st_ino}"


class TextFormatter(logging.Formatter):
    """Lines that end with the code of the error that they tell of, if it has one."""

    def formatMessage(self, record: logging.LogRecord) -> str:
        return with_code(super().formatMessage(record), _code(record))


def _code(record: logging.LogRecord) -> str:
    """Return the code of the first error among a record's arguments."""
    found = record.args if isinstance(record.args, tuple) else ()
    return next((code for one in found if (code := code_of(one))), "")


class JournalFormatter(TextFormatter):
    """Lines for journald: a priority in front of each, and nothing that it adds."""

    def format(self, record: logging.LogRecord) -> str:
        prefix = f"<{_priority(record.levelno)}>"
        # journald takes each line of a traceback for a separate entry.
        lines = super().format(record).splitlines() or [""]
        return "\n".join(prefix + line for line in lines)


def _priority(level: int) -> int:
    return next(priority for least, priority in _PRIORITIES if level >= least)


class JsonFormatter(logging.Formatter):
    """One JSON object for each record, on one line."""

    def __init__(self, program: str) -> None:
        super().__init__()
        self._program = program

    def format(self, record: logging.LogRecord) -> str:
        seconds = time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(record.created))
        line = {
            "time": f"{seconds}.{int(record.msecs):03d}Z",
            "level": record.levelname.lower(),
            "program": self._program,
            "source": record.name,
            "message": record.getMessage(),
        }
        if code := _code(record):
            line["code"] = code
        if record.exc_info:
            line["exception"] = self.formatException(record.exc_info)
        return json.dumps(line)

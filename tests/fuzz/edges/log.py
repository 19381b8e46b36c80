# SPDX-License-Identifier: Apache-2.0
"""The log while inputs run: it is made, checked, and written nowhere."""

import logging
from collections.abc import Iterator
from contextlib import contextmanager


class Checked(logging.Handler):
    """Makes each line, and fails at an error that was not foreseen."""

    def emit(self, record: logging.LogRecord) -> None:
        text = record.getMessage()
        if record.exc_info is not None and record.levelno >= logging.ERROR:
            raise AssertionError(text) from record.exc_info[1]


@contextmanager
def checked_log() -> Iterator[None]:
    """Check all lines of ours, and keep none: its arguments would stay, too."""
    handler = Checked()
    loggers = [logging.getLogger(f"vhostpci_{part}") for part in ("host", "guest")]
    for logger in loggers:
        logger.propagate = False
        logger.setLevel(logging.DEBUG)
        logger.addHandler(handler)
    yield
    for logger in loggers:
        logger.propagate = True
        logger.setLevel(logging.NOTSET)
        logger.removeHandler(handler)

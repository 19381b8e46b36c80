# SPDX-License-Identifier: Apache-2.0
"""A command line whose errors are one line, and not the list of all options."""

import argparse
import re
from typing import NoReturn

from .errors import with_code

_WRONG = "S022"
"""An option or an argument is unknown, is missing, or has a wrong value."""

_CODED = re.compile(r"(.*) \[([A-Z]\d{3})\]", re.DOTALL)


class Parser(argparse.ArgumentParser):
    """An `ArgumentParser`, also for its sub-commands, that says where the list is."""

    def error(self, message: str) -> NoReturn:
        """Print what is wrong, and end with status 2."""
        # argparse prints the usage first: with twenty options it takes eight lines, and
        # the sentence that matters stands below them.
        # The error of a value has a code already (`told`): that one is more precise.
        found = _CODED.fullmatch(message)
        message, code = found.groups() if found else (message, _WRONG)
        text = with_code(f"{message}; see {self.prog} --help", code)
        self.exit(2, f"{self.prog}: {text}\n")

# SPDX-License-Identifier: Apache-2.0
"""A command line whose errors are one line, and not the list of all options."""

import argparse
from typing import NoReturn


class Parser(argparse.ArgumentParser):
    """An `ArgumentParser`, also for its sub-commands, that says where the list is."""

    def error(self, message: str) -> NoReturn:
        """Print what is wrong, and end with status 2."""
        # argparse prints the usage first: with twenty options it takes eight lines, and
        # the sentence that matters stands below them.
        self.exit(2, f"{self.prog}: {message}; see {self.prog} --help\n")

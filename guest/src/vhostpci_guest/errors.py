# SPDX-License-Identifier: Apache-2.0
"""The error that a user can act on; a mistake of a peer is a `ProtocolError`."""

from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING

from vhostpci_shared.errors import Coded

if TYPE_CHECKING:
    from vhostpci_shared.toml_file import Mistake


class Unusable(Coded):
    """This machine cannot do what the user asked; the text says what to change.

    The fault is neither in our code nor in a peer.  The command line prints the text as
    one line, without a traceback, and exits with status 1.
    """


class Refused(Coded):
    """The agent does not do what a client of its status socket asks."""


class FileError(Unusable):
    """A configuration file has mistakes; the text has one line for each."""

    def __init__(self, path: Path, mistakes: Iterable["Mistake"]) -> None:
        super().__init__("\n".join(mistake.of(path) for mistake in mistakes))

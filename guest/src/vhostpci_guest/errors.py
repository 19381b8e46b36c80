# SPDX-License-Identifier: Apache-2.0
"""The error that a user can act on; a mistake of a peer is a `ProtocolError`."""


class Unusable(Exception):
    """This machine cannot do what the user asked; the text says what to change.

    The fault is neither in our code nor in a peer.  The command line prints the text as
    one line, without a traceback, and exits with status 1.
    """


class Refused(Exception):
    """The agent does not do what a client of its status socket asks."""


class FileError(Unusable):
    """A configuration file has mistakes; the text has one line for each."""

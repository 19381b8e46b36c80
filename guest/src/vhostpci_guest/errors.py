# SPDX-License-Identifier: Apache-2.0
"""The error that a user can act on; a peer's mistakes are `ProtocolError`."""


class Unusable(Exception):
    """This machine, as it is, cannot do what was asked; the text says what to change.

    Neither our fault nor a peer's: one line for the user, exit status 1.
    """

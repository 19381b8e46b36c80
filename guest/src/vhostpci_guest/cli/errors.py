# SPDX-License-Identifier: Apache-2.0
"""The errors of the command line."""

from vhostpci_shared.errors import Coded


class UsageError(Coded):
    """The options do not fit each other, or this machine: exit status 2."""

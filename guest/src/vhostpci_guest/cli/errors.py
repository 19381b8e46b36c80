# SPDX-License-Identifier: Apache-2.0
"""The errors of the command line."""


class UsageError(Exception):
    """The options do not fit each other, or this machine: exit status 2."""

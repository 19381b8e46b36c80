# SPDX-License-Identifier: Apache-2.0
"""The commands of our README files, as a user copies them."""

import re

from tests.vm.image import CHECKOUT


def script(name: str, after: str) -> str:
    """Return that block as shell text, which ends with the first command that fails."""
    return "\n".join(["set -e", *commands(name, after)])


def commands(name: str, after: str) -> list[str]:
    """Return the first block of commands that follows a text, one command a line."""
    text = (CHECKOUT / name).read_text()
    found = re.search(rf"{re.escape(after)}.*?^```\n(.*?)^```", text, re.DOTALL | re.M)
    assert found, f"{name} has no commands after {after!r}"
    return found[1].splitlines()

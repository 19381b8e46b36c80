# SPDX-License-Identifier: Apache-2.0
"""What became of a TAP whose settings the user has changed while it is open."""

from collections.abc import Callable
from dataclasses import dataclass, field

from vhostpci_shared.errors import told

from ..errors import Unusable


@dataclass(slots=True)
class TapChange:
    """The settings that were changed, and what the kernel refused.

    One refusal does not keep the other settings from being changed.
    """

    changed: list[str] = field(default_factory=list)
    """Names of options, each once."""
    problems: list[str] = field(default_factory=list)

    def attempt(self, option: str, action: Callable[[], None]) -> None:
        """Change one setting, and note what comes of it."""
        try:
            action()
        except (Unusable, OSError) as why:
            self.problems.append(f"{option}: {told(why)}")
            return
        if option not in self.changed:
            self.changed.append(option)

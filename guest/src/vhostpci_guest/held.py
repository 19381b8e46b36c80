# SPDX-License-Identifier: Apache-2.0
"""An answer of the status socket that holds while its client stays connected."""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple


class Held(NamedTuple):
    """An answer with descriptors."""

    result: dict[str, Any]
    fds: Sequence[int]
    """They stay ours; the client gets copies."""
    is_over: Callable[[], bool]
    """Whether it is over by itself, and the client is to be disconnected."""
    end: Callable[[], None]
    """Called once, when the client has gone or is disconnected."""

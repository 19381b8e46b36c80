# SPDX-License-Identifier: Apache-2.0
"""A lab for each test; where it cannot be, a skip that says why (in CI a failure)."""

import os
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.fakes.netns import private_network
from tests.process.lab import Lab

TOOLS = ["ip", "ping", "iperf3", "nsenter", "setpriv", "unshare"]


def missing() -> list[str]:
    """What this machine lacks."""
    lacks = [tool for tool in TOOLS if not shutil.which(tool)]
    if os.geteuid():
        lacks.append("root")
    if not Path("/dev/net/tun").exists():
        lacks.append("/dev/net/tun")
    return lacks


@pytest.fixture
def lab(tmp_path: Path) -> Iterator[Lab]:
    """An empty lab, in a network namespace of its own."""
    lacks = missing()
    if lacks:
        stop = pytest.fail if os.environ.get("CI") else pytest.skip
        stop(f"missing: {', '.join(lacks)} (tools/setup installs what it can)")
    with private_network(), Lab(tmp_path) as lab:
        yield lab

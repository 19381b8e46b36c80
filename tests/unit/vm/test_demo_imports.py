# SPDX-License-Identifier: Apache-2.0
"""The demo starts on a machine that has nothing of ours but the clone."""

import subprocess
import sys

from tests.vm import data_planes
from tests.vm.image import CHECKOUT
from vhostpci_guest.dataplane import kinds

WITHOUT_OURS = """
import sys
for name in ("vhostpci_guest", "vhostpci_host", "vhostpci_shared"):
    sys.modules[name] = None
import tests.vm.demo
"""


def test_demo_needs_nothing_of_ours_that_is_installed() -> None:
    subprocess.run([sys.executable, "-c", WITHOUT_OURS], cwd=CHECKOUT, check=True)


def test_demo_knows_the_data_planes_by_their_names() -> None:
    for name in ("RING", "VHOST_NET", "VHOST_USER"):
        assert getattr(data_planes, name) == getattr(kinds, name)

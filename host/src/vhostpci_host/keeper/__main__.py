# SPDX-License-Identifier: Apache-2.0
"""`python -m vhostpci_host.keeper ARGUMENTS` runs `vhostpci-host ARGUMENTS`."""

import sys

from .process import main

sys.exit(main(sys.argv[1:]))

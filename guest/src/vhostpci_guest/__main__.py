# SPDX-License-Identifier: Apache-2.0
"""`python -m vhostpci_guest` is the command `vhostpci-guest`."""

import sys

from .cli.main import main

sys.exit(main())

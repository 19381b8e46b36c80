# SPDX-License-Identifier: Apache-2.0
"""`python -m vhostpci_host` is the command `vhostpci-host`."""

import sys

from .cli.main import main

sys.exit(main())

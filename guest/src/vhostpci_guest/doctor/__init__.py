# SPDX-License-Identifier: Apache-2.0
"""What `vhostpci-guest doctor` checks.  Nothing here changes anything."""

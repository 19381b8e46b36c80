# SPDX-License-Identifier: Apache-2.0
"""What `vhostpci-host doctor` checks.  Nothing here changes anything."""

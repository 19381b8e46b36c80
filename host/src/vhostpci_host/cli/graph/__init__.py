# SPDX-License-Identifier: Apache-2.0
"""The command `graph`: which VMs are joined by which devices, as a picture."""

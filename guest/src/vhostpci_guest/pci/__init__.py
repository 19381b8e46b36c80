# SPDX-License-Identifier: Apache-2.0
"""Devices from PCI: finding, binding and watching the ivshmem functions."""

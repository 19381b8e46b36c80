# SPDX-License-Identifier: Apache-2.0
"""Plug windows into a running slave VM, and unplug them, through QMP or libvirt."""

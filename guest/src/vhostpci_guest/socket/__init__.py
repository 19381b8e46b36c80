# SPDX-License-Identifier: Apache-2.0
"""Devices from a daemon's Unix socket, for an agent that runs on the hypervisor."""

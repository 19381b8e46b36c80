# SPDX-License-Identifier: Apache-2.0
"""The filter of system calls that the daemon gives itself before it serves."""

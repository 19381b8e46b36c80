# SPDX-License-Identifier: Apache-2.0
"""The conversation with a slave VM's monitor: plugging and unplugging windows."""

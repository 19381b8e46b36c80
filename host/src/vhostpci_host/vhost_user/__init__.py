# SPDX-License-Identifier: Apache-2.0
"""The vhost-user back-end: speaks to the front-end, which is the master's QEMU."""

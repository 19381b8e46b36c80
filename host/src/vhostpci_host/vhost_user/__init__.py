# SPDX-License-Identifier: Apache-2.0
"""The conversation with the front-end: the master's QEMU, in vhost-user."""

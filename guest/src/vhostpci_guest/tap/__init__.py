# SPDX-License-Identifier: Apache-2.0
"""The TAP: its queues, its name and address, and the Linux bridge it joins."""

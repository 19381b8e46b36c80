# SPDX-License-Identifier: Apache-2.0
"""Least privilege: what the agent gives up, and the helpers that do what needs it."""

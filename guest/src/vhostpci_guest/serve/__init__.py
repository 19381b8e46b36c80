# SPDX-License-Identifier: Apache-2.0
"""Serving one device: from its metadata to running rings and a TAP."""

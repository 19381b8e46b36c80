# SPDX-License-Identifier: Apache-2.0
"""What moves packets between the master's rings and a TAP."""

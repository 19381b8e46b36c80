# SPDX-License-Identifier: Apache-2.0
"""What a daemon leaves to its successor: the keeper, and the state of each device."""

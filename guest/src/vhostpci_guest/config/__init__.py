# SPDX-License-Identifier: Apache-2.0
"""The configuration of the agent: its options, and the file that has them."""

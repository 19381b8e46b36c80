# SPDX-License-Identifier: Apache-2.0
"""The master's memory: the files it lies in, and the windows that show them."""

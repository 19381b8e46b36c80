# SPDX-License-Identifier: Apache-2.0
"""The configuration of devices: their options, and the file that lists devices."""

# SPDX-License-Identifier: Apache-2.0
"""What a device is configured to be: its options, and the file that lists devices."""

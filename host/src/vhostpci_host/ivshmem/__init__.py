# SPDX-License-Identifier: Apache-2.0
"""The conversation with the slave: QEMU's ivshmem-doorbell, or an agent itself."""

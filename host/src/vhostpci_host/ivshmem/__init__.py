# SPDX-License-Identifier: Apache-2.0
"""The ivshmem server: speaks to the slave VM's QEMU, or to an agent process."""

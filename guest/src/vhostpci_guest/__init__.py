# SPDX-License-Identifier: Apache-2.0
"""The agent in the slave VM: another VM's virtqueues on one side, a TAP on the other.

Bytes come from `vhostpci_shared`; `agent` is the only module that waits; what to do
is decided in `plan`, which does no input or output.
"""

__version__ = "0.1.0"

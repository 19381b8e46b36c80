# SPDX-License-Identifier: Apache-2.0
"""The agent in the slave VM: another VM's virtqueues on one side, a TAP on the other.

`vhostpci_shared` turns bytes into values.  `agent` is the loop, which sleeps on the
main thread; `pci.binder` is the thread on which PCI devices are bound.  `serve.plan`
decides what to do, and does no input or output.
"""

__version__ = "0.1.0"

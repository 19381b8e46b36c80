# SPDX-License-Identifier: Apache-2.0
"""A PCI function's configuration space (PCI, "Configuration Space Header Format")."""

import struct

SIZE = 256
COMMAND = 0x04
COMMAND_MEMORY, COMMAND_MASTER = 2, 4
_STATUS, _STATUS_CAPABILITIES, _CAPABILITIES = 0x06, 0x10, 0x34
_MSIX = 0x11


def memory_is_on(config: bytes) -> bool:
    """Whether the function answers accesses to its BARs."""
    (command,) = struct.unpack_from("<H", config, COMMAND)
    return bool(command & COMMAND_MEMORY)


def msix_vectors(config: bytes) -> int:
    """Return the vectors of the MSI-X capability (PCI, "Capabilities List")."""
    (status,) = struct.unpack_from("<H", config, _STATUS)
    at = config[_CAPABILITIES] if status & _STATUS_CAPABILITIES else 0
    # A list that loops, by a bug of the device, must end: more capabilities than
    # words are impossible.
    for _ in range(SIZE // 4):
        at &= ~3  # the two low bits are reserved, and software must mask them
        if at == 0:
            return 0
        kind, following, control = struct.unpack_from("<BBH", config, at)
        if kind == _MSIX:
            return int(control & 0x7FF) + 1  # the field has the size minus one
        at = following
    return 0

# SPDX-License-Identifier: Apache-2.0
"""A program that takes another one's socket."""

import os
import socket
from pathlib import Path


def steal(path: Path) -> socket.socket:
    """Do what a QEMU with server=on does to a socket that is there."""
    path.unlink()
    thief = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    thief.bind(os.fspath(path))
    thief.listen()
    return thief

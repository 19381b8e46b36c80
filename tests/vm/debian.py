# SPDX-License-Identifier: Apache-2.0
"""Which Debian this machine has: its guests are made of the same one."""

import platform
from pathlib import Path

CODENAME = platform.freedesktop_os_release().get("VERSION_CODENAME", "")
"""What its release is called in the archive: ``bookworm``, ``trixie``."""

PYTHON = Path("/usr/bin/python3").resolve()
"""Debian's own interpreter, by its version: ``/usr/bin/python3.11``.

The guest has the same one, so what is compiled and installed with it runs there.
"""

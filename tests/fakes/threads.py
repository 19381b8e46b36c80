# SPDX-License-Identifier: Apache-2.0
"""A machine with no room for another thread."""

import threading

import pytest


def allow_none(monkeypatch: pytest.MonkeyPatch) -> None:
    """Have each thread fail to start, as when the kernel refuses it."""

    def start(_: threading.Thread) -> None:
        raise RuntimeError("can't start new thread")

    monkeypatch.setattr(threading.Thread, "start", start)

# SPDX-License-Identifier: Apache-2.0
"""What is taken from the cache counts as in use, so that no other checkout deletes it.

A run of all VM tests may take longer than what was made at its start is kept.
"""

import os
import time
from pathlib import Path

import pytest

from tests.vm import cache, headers, kernels, kmod, wheels

LONG_AGO = time.time() - 10 * cache.IN_USE


@pytest.fixture(autouse=True)
def empty_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("VHOSTPCI_CACHE", str(tmp_path))


def made_long_ago(entry: Path, *names: str) -> Path:
    """Make an entry of the cache with some files."""
    entry.mkdir(parents=True)
    for name in names:
        (entry / name).touch()
    os.utime(entry, (LONG_AGO, LONG_AGO))
    return entry


def is_in_use(entry: Path) -> bool:
    """Whether an entry outlives a cache that is to keep nothing."""
    cache.discard_old([entry, made_long_ago(entry.with_name("newest"))], keep=1)
    return entry.exists()


def test_wheels(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(wheels, "key_of", lambda _: "key")
    shared = made_long_ago(tmp_path / "wheels/shared-key", "shared.whl")
    guest = made_long_ago(tmp_path / "wheels/guest-key", "guest.whl")
    assert wheels.guest_wheels() == [shared / "shared.whl", guest / "guest.whl"]
    assert is_in_use(shared)


def test_host_packages(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(wheels, "_wheel", Path)
    monkeypatch.setattr(wheels, "digest", lambda _: "key")
    host = made_long_ago(tmp_path / "host/key")
    assert wheels.host_packages() == host
    assert is_in_use(host)


def test_directory_with_the_same_inputs(tmp_path: Path) -> None:
    made: list[Path] = []

    def make(path: Path, place: Path) -> None:
        made.append(place)
        (path / "file").touch()

    first = cache.entry("things", ["a", "b"], make, keep=1)
    os.utime(first, (LONG_AGO, LONG_AGO))
    assert cache.entry("things", ["a", "b"], make, keep=1) == first
    assert made == [first]
    assert (first / "file").exists()
    assert is_in_use(first)


def test_module(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(headers, "unpacked", lambda _: tmp_path)
    monkeypatch.setattr(kernels.Kernel, "release", lambda _: "6.1")
    monkeypatch.setattr(kmod, "digest", lambda _: "key")
    module = made_long_ago(tmp_path / "modules/6.1-key", f"{kmod.NAME}.ko")
    assert kmod.build() == module / f"{kmod.NAME}.ko"
    assert is_in_use(module)

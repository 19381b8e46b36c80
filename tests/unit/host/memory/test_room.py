# SPDX-License-Identifier: Apache-2.0
"""Whether all arenas together fit into their file systems."""

from collections.abc import Iterator
from contextlib import ExitStack, closing
from dataclasses import replace
from pathlib import Path

import pytest

from tests.fakes.windows import MIB
from vhostpci_host.config.device import DeviceConfig
from vhostpci_host.errors import HostError
from vhostpci_host.memory import arena as arena_module
from vhostpci_host.memory.arena import Arena
from vhostpci_host.memory.room import Promise, shortages
from vhostpci_shared import metadata as md


def promises(arenas: list[Arena]) -> list[Promise]:
    return [one for arena in arenas if (one := arena.promise()) is not None]


def take_all(arena: Arena) -> None:
    for step in arena.reservation():
        step()


@pytest.fixture
def arenas(config: DeviceConfig, small: Path) -> Iterator[list[Arena]]:
    """Two arenas of 5 MiB each, where there are 8 MiB."""
    with ExitStack() as stack:
        yield [
            stack.enter_context(
                closing(
                    Arena(replace(config, name=name, memory=5 * MIB, memory_dir=small))
                )
            )
            for name in ("one", "two")
        ]


def test_arenas_that_only_fit_one_at_a_time_are_reported(arenas: list[Arena]) -> None:
    one, two = promises(arenas)
    assert shortages([one]) == shortages([two]) == {}
    (warning,) = shortages([one, two]).values()
    assert "has 7 MiB free, and the memory of one, two may take 9 MiB more" in warning
    assert "--prealloc" in warning


def test_file_systems_are_counted_separately(
    arenas: list[Arena], config: DeviceConfig
) -> None:
    with closing(Arena(replace(config, name="elsewhere"))) as elsewhere:
        assert shortages(promises([arenas[0], elsewhere])) == {}


def test_reserved_memory_is_not_counted_as_missing(
    arenas: list[Arena], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(arena_module, "PIECE", MIB)
    one, two = arenas
    take_all(one)
    assert one.path.stat().st_blocks * 512 >= 5 * MIB
    (promise,) = promises([one])
    assert promise.missing == 0
    with pytest.raises(HostError, match=f"no space left in {one.path.parent}, for two"):
        take_all(two)


def test_memory_that_is_reserved_in_part_is_missing_in_part(
    arenas: list[Arena], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(arena_module, "PIECE", MIB)
    one, _ = arenas
    steps = one.reservation()
    next(steps)()
    (promise,) = promises([one])
    assert promise.missing == pytest.approx(4 * MIB, abs=md.SIZE)


def test_step_that_is_late_reserves_though_the_arena_is_closed(
    config: DeviceConfig,
) -> None:
    """It runs in another thread."""
    arena = Arena(config)
    steps = arena.reservation()
    late = next(steps)
    arena.close()
    late()
    steps.close()


@pytest.mark.parametrize(("missing", "reported"), [(MIB, False), (MIB + 1, True)])
def test_last_byte_of_a_file_system_may_be_promised(
    missing: int, reported: bool
) -> None:
    one = Promise("one", Path("/memory"), 1, missing, free=MIB)
    assert bool(shortages([one])) == reported


def test_reserved_memory_keeps_what_is_in_it(arenas: list[Arena]) -> None:
    """A master may run on the arena of an earlier daemon."""
    one, _ = arenas
    with one.path.open("r+b") as file:
        file.write(b"guest")
    take_all(one)
    assert one.read(0, 5) == b"guest"

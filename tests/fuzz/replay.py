# SPDX-License-Identifier: Apache-2.0
"""Run inputs at an edge, without Atheris: python -m tests.fuzz.replay EDGE [INPUT...]

An input is a file, `corpus` for all that were found, or COUNT@SEED for so many
pseudo-random ones.
"""

import faulthandler
import importlib
import random
import sys
import time
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from tests.fuzz.edges.log import checked_log
from tests.fuzz.inputs import read

LONGEST = 300
"""Bytes of a pseudo-random input: some forty doings."""


def watch_warnings() -> list[str]:
    """Return a list of what Python only prints: descriptors that were not closed."""
    found: list[str] = []

    def note(what: "sys.UnraisableHookArgs") -> None:
        found.append(f"{what.exc_value!r} in {what.object!r}")

    sys.unraisablehook = note
    warnings.simplefilter("error")
    return found


@contextmanager
def target(edge: str) -> Iterator[Callable[[bytes], None]]:
    """Give the function that runs one input at an edge."""
    module = importlib.import_module(f"tests.fuzz.edges.{edge}")
    world = module.make()
    left = watch_warnings()

    def run(data: bytes) -> None:
        module.run(world, data)
        assert not left, left

    with checked_log():
        yield run
    if world is not None:
        world.close()


def inputs(edge: str, what: str) -> Iterator[bytes]:
    """Return the inputs that a word of the command line stands for."""
    count, at, seed = what.partition("@")
    if what == "corpus":
        yield from read(edge)
    elif at:
        numbers = random.Random(int(seed))
        for _ in range(int(count)):
            yield numbers.randbytes(numbers.randrange(1, LONGEST))
    else:
        yield Path(what).read_bytes()


def main(edge: str, *words: str) -> None:
    """Run the inputs, and say how many there were."""
    faulthandler.enable()
    count, began = 0, time.process_time()
    with target(edge) as run:
        for data in (
            one for word in words or ("corpus",) for one in inputs(edge, word)
        ):
            try:
                run(data)
            except BaseException:
                print(f"the input is {data.hex()}", file=sys.stderr)
                raise
            count += 1
    print(f"{edge}: {count} inputs, {time.process_time() - began:.1f} s")


if __name__ == "__main__":
    main(*sys.argv[1:])

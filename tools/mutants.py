# SPDX-License-Identifier: Apache-2.0
"""Check that the tests notice when the code is wrong: tools/mutants.py

A mutant is one wrong change to the code, for example a bounds check that is off by
one.  tools/mutants.toml lists them, each with the tests that must fail because of
it.  For each mutant this program changes a copy of the tree, builds the ring in it
if the change is in C, and runs those tests.  A mutant whose tests pass survives: then a
test is missing, and the exit status is 1.  So it is with one whose tests hang until a
time limit: on a slow machine they might have passed.

It needs a Python with the packages of the unit tests, and gcc::

    tox -e mutants                      all of them, minutes
    tox -e mutants -- --only fence      those whose name contains "fence"
    tools/mutants.py --list             only print the list
"""

import argparse
import os
import shutil
import subprocess
import sys
import tempfile
import tomllib
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from enum import Enum
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
DATA = Path(__file__).with_suffix(".toml")
SOURCES = ("shared/src", "host/src", "guest/src")

# Nothing that is copied may be left over from a build or from another tool.
LEFTOVERS = ("*.so", "*.egg-info", "__pycache__", "build", ".*")

# A mutant may hang in C, where pytest's own timeout does not reach it.
LIMIT_S = 120
# All the tests together, without a mutant.
UNCHANGED_LIMIT_S = 1200


@dataclass(frozen=True, slots=True)
class Mutant:
    name: str
    file: str
    old: str
    new: str
    tests: tuple[str, ...]

    @property
    def in_c(self) -> bool:
        return Path(self.file).suffix in (".c", ".h")


class Outcome(Enum):
    """What became of the tests of a mutant."""

    KILLED = "killed"
    SURVIVES = "SURVIVES"
    HANGS = "HANGS"


class MutantError(Exception):
    """A mutant cannot be made, or its tests fail without it."""


def read_mutants(data: Path) -> list[Mutant]:
    """Read the list.

    Raises:
        MutantError: an entry lacks a key or has one too many, or two have one name.
    """
    mutants = []
    for entry in tomllib.loads(data.read_text())["mutant"]:
        try:
            mutants.append(Mutant(**{**entry, "tests": tuple(entry["tests"])}))
        except (TypeError, KeyError) as error:
            raise MutantError(f"{data}: {entry.get('name', entry)}: {error}") from None
    names = [mutant.name for mutant in mutants]
    for name in names:
        if names.count(name) > 1:
            raise MutantError(f"{data}: {name}: two mutants have this name")
    return mutants


class Tree:
    """A copy of the tree, whose code is changed and tested."""

    def __init__(self, root: Path) -> None:
        self.root = root
        shutil.copytree(
            ROOT,
            root,
            ignore=shutil.ignore_patterns(*LEFTOVERS),
            dirs_exist_ok=True,
            symlinks=True,  # of guest/ring: a mutant is one in all that has the file
        )
        self._env = {
            **os.environ,
            "PYTHONPATH": os.pathsep.join(str(root / source) for source in SOURCES),
            # Python would take cached bytecode for that of a mutant which has the
            # same size and was written within the same second.
            "PYTHONDONTWRITEBYTECODE": "1",
            "CFLAGS": "-O2 -fno-strict-aliasing",
        }

    @contextmanager
    def mutated(self, mutant: Mutant) -> Iterator[None]:
        """Make the change; undo it at the end."""
        path = self.root / mutant.file
        text = path.read_text()
        found = text.count(mutant.old)
        if found != 1:
            raise MutantError(
                f"{mutant.name}: {mutant.file} has the old text {found} times, not"
                " once; correct tools/mutants.toml"
            )
        path.write_text(text.replace(mutant.old, mutant.new))
        try:
            yield
        finally:
            path.write_text(text)

    def build_ring(self) -> None:
        """Build the ring and the relays in place, from nothing.

        Raises:
            MutantError: the compiler refuses the code.
        """
        for project, modules in (("shared", 2), ("guest", 1)):
            shutil.rmtree(self.root / project / "build", ignore_errors=True)
            for old in (self.root / project / "src").rglob("*.so"):
                old.unlink()
            done = self._python(project, "setup.py", "-q", "build_ext", "--inplace")
            built = list((self.root / project / "src").rglob("*.so"))
            if done.returncode or len(built) != modules:
                raise MutantError(f"the C of {project} cannot be built:\n{done.stderr}")

    def run_tests(self, tests: Sequence[str], limit_s: int) -> Outcome:
        """Run the tests; return what became of the mutant that the tree has."""
        options = ("-q", "-x", "-p", "no:cacheprovider")
        try:
            done = self._python(".", "-m", "pytest", *options, *tests, limit_s=limit_s)
        except subprocess.TimeoutExpired:
            return Outcome.HANGS
        # 2 to 5: pytest was interrupted, misused, or found no tests at all.
        if done.returncode in (2, 3, 4, 5):
            raise MutantError(f"pytest cannot run {' '.join(tests)}:\n{done.stdout}")
        return Outcome.KILLED if done.returncode else Outcome.SURVIVES

    def _python(
        self, directory: str, *arguments: str, limit_s: int = LIMIT_S
    ) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [sys.executable, *arguments],
            cwd=self.root / directory,
            env=self._env,
            capture_output=True,
            text=True,
            timeout=limit_s,
        )


def try_one(tree: Tree, mutant: Mutant) -> Outcome:
    """Make one mutant and run its tests."""
    with tree.mutated(mutant):
        if mutant.in_c:
            tree.build_ring()
        return tree.run_tests(mutant.tests, LIMIT_S)


def check_unchanged(tree: Tree, mutants: Sequence[Mutant]) -> None:
    """All these tests must pass without a mutant, or their failures prove nothing."""
    tree.build_ring()
    tests = sorted({test for mutant in mutants for test in mutant.tests})
    if tree.run_tests(tests, UNCHANGED_LIMIT_S) is not Outcome.SURVIVES:
        raise MutantError("the tests fail without any mutant")


def check(mutants: Sequence[Mutant]) -> list[Mutant]:
    """Run them all; return those that no test has noticed."""
    unnoticed = []
    with tempfile.TemporaryDirectory(prefix="mutants-") as directory:
        tree = Tree(Path(directory))
        check_unchanged(tree, mutants)
        ring_is_mutated = False
        for mutant in mutants:
            if ring_is_mutated and not mutant.in_c:
                tree.build_ring()
            ring_is_mutated = mutant.in_c
            outcome = try_one(tree, mutant)
            print(f"{outcome.value:8}  {mutant.name}", flush=True)
            if outcome is not Outcome.KILLED:
                unnoticed.append(mutant)
    return unnoticed


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--list", action="store_true", help="print the mutants")
    parser.add_argument(
        "--only",
        action="append",
        default=[],
        metavar="TEXT",
        help="those whose name or file contains TEXT; may be repeated",
    )
    return parser.parse_args()


def main() -> int:
    arguments = parse_arguments()
    try:
        mutants = [
            mutant
            for mutant in read_mutants(DATA)
            if not arguments.only
            or any(text in f"{mutant.name} {mutant.file}" for text in arguments.only)
        ]
        if arguments.list:
            for mutant in mutants:
                print(f"{mutant.name:44} {mutant.file}")
            return 0
        if not mutants:
            raise MutantError(f"no mutant is named {' or '.join(arguments.only)}")
        unnoticed = check(mutants)
    except MutantError as error:
        print(error, file=sys.stderr)
        return 2
    print(f"{len(mutants)} mutants, {len(unnoticed)} that no test has noticed")
    return 1 if unnoticed else 0


if __name__ == "__main__":
    sys.exit(main())

# SPDX-License-Identifier: Apache-2.0
"""make bench: what vhostpci reaches, each figure beside a peer's of the same run.

    make bench ARGS="PART... [--json FILE] [--picture DIRECTORY] [--quick]"
    make bench ARGS="--compare A.json B.json"

All parts run if none is named, which takes some twenty minutes.
"""

import argparse
import subprocess
import sys
import time
import traceback
from collections.abc import Sequence
from pathlib import Path

from tests.bench import compare, machine
from tests.bench.figures import Figure
from tests.bench.machine import Load
from tests.bench.parts import PARTS
from tests.bench.picture import draw
from tests.bench.plan import CannotMeasure, Part, Plan
from tests.bench.report import Report, ReportError, table
from tests.vm.channel import GuestError
from tests.vm.daemon import DaemonError

FAILURES = (
    *(AssertionError, LookupError, OSError, ValueError),
    *(subprocess.SubprocessError, GuestError, DaemonError),
)
"""What may go wrong in one part, on a machine that is too busy or lacks something."""


def parser() -> argparse.ArgumentParser:
    """Return the parser of the command line."""
    usage, *_ = (__doc__ or "").splitlines()
    names = "\n".join(f"  {part.name:8} {part.about}" for part in PARTS.values())
    parser = argparse.ArgumentParser(
        prog="make bench",
        description=usage,
        epilog=f"parts:\n{names}",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("part", nargs="*", metavar="PART", help="default: all parts")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write a report")
    parser.add_argument(
        "--picture",
        type=Path,
        metavar="DIRECTORY",
        help="draw DIRECTORY/bench-PART.png",
    )
    parser.add_argument(
        "--quick", action="store_true", help="shorter runs: to see whether it works"
    )
    parser.add_argument(
        "--compare",
        nargs=2,
        type=Path,
        metavar=("A.json", "B.json"),
        help="say what changed between two reports beyond noise",
    )
    return parser


def measure(part: Part, plan: Plan, load: Load) -> Sequence[Figure]:
    """Run a part, and print what it has found."""
    print(f"\n{part.name}: {part.about}", flush=True)
    if load.busy:
        print(f"This machine is too busy to measure well: {load}.", flush=True)
    began = time.monotonic()
    figures = part.measure(plan)
    print(f"The peer is {', '.join(sorted({f.peer_name for f in figures}))}.\n")
    print(table(figures))
    print(f"\n{part.name} took {time.monotonic() - began:.0f} s.", flush=True)
    return figures


def run(parts: Sequence[Part], args: argparse.Namespace) -> int:
    """Run the parts; write the report after each, so that nothing found is lost."""
    print(f"{machine.name()}, Linux, commit {machine.commit()}", flush=True)
    figures: list[Figure] = []
    loads: list[Load] = []
    failed = 0
    for part in parts:
        loads.append(Load.now())
        try:
            found = measure(part, Plan(quick=args.quick), loads[-1])
        except CannotMeasure as error:
            print(f"{part.name}: cannot measure: {error}", file=sys.stderr)
            failed += 1
            continue
        except FAILURES:
            # All parts take a while: the others' figures are worth having.
            traceback.print_exc()
            print(f"{part.name}: failed, see above", file=sys.stderr)
            failed += 1
            continue
        figures += found
        report = Report.here(figures, loads)
        if args.json:
            report.write(args.json)
        if args.picture:
            busy = "; busy machine" if loads[-1].busy else ""
            title = f"{part.name}: {report.machine}, {report.commit}{busy}"
            draw(found, title, args.picture / f"bench-{part.name}.png")
    print("\nA ratio is ours over the peer's; * marks where the peer is ahead.")
    return 1 if failed else 0


def main(argv: Sequence[str] | None = None) -> int:
    """Do what the command line says."""
    options = parser()
    args = options.parse_args(argv)
    if unknown := [name for name in args.part if name not in PARTS]:
        options.error(f"no such part: {unknown[0]} (there are: {', '.join(PARTS)})")
    if args.compare:
        try:
            print(compare.text(*map(Report.read, args.compare)))
        except (OSError, ReportError) as error:
            print(f"make bench: {error}", file=sys.stderr)
            return 1
        return 0
    for path in (args.json and args.json.absolute().parent, args.picture):
        if path and not path.is_dir():
            options.error(f"{path} is not a directory")
    return run([PARTS[name] for name in args.part or PARTS], args)


if __name__ == "__main__":
    sys.exit(main())

# SPDX-License-Identifier: Apache-2.0
"""make soak: what restarts cost, seen for as long as you like; root.

    make soak ARGS="upgrades [--devices 200] [--upgrades 100]"
    make soak ARGS="kills [--minutes 30] [--every 5] [--seed N]"

Exit status 1 if a master, a slave or a packet has noticed a restart.
"""

import argparse
import signal
import sys

from tests.soak import kills, upgrades

RUNS = {"kills": kills, "upgrades": upgrades}


def main() -> int:
    """Run what the command line names; return the exit status."""
    parser = argparse.ArgumentParser(prog="make soak", description=__doc__)
    commands = parser.add_subparsers(dest="run", required=True)
    for name, module in RUNS.items():
        about = (module.__doc__ or "").splitlines()[0]
        module.add_to(commands.add_parser(name, help=about, description=about))
    args = parser.parse_args()
    # Like Ctrl-C: everything that was started is ended.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(1))
    problems = RUNS[args.run].main(args)
    for problem in problems:
        print(f"FAILED: {problem}", file=sys.stderr)
    return int(bool(problems))


if __name__ == "__main__":
    sys.exit(main())

# SPDX-License-Identifier: Apache-2.0
"""Fuzz one edge, led by what each input reaches: python -m tests.fuzz.guided EDGE ...

What follows the edge's name is libFuzzer's: directories with inputs, and options.
Atheris has libFuzzer, and tells it which lines of Python an input reaches.
"""

import faulthandler
import importlib
import sys

import atheris

from tests.fuzz.replay import target

OPTIONS = (
    # A file that another process cuts is a SIGBUS that the daemon survives.
    *("-handle_bus=0", "-handle_segv=0"),
    # An input takes milliseconds, but a process that gives way to all others waits.
    *("-timeout=300", "-report_slow_units=300"),
    *("-rss_limit_mb=2048", "-max_len=600", "-len_control=20"),
)
OURS = ["vhostpci_host", "vhostpci_shared", "vhostpci_guest"]


def main(edge: str, *options: str) -> None:
    """Fuzz until libFuzzer ends the process."""
    faulthandler.enable()
    with atheris.instrument_imports(include=OURS):
        importlib.import_module(f"tests.fuzz.edges.{edge}")
    # libFuzzer gives this to a shell when it starts itself again, to merge inputs.
    again = f"{sys.executable} -m tests.fuzz.guided {edge}"
    with target(edge) as run:
        atheris.Setup([again, *OPTIONS, *options], run)
        atheris.Fuzz()


if __name__ == "__main__":
    main(*sys.argv[1:])

# SPDX-License-Identifier: Apache-2.0
"""The option `--print-capabilities`: tools ask with it what this back-end can do."""

import argparse
import json
from typing import Any

# QEMU's docs/interop/vhost-user.json: `type` is the kind of device.  The optional
# features that it lists for back-ends are of GPU, input and block devices.
CAPABILITIES = {"type": "net", "features": []}


def add_option(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--print-capabilities",
        action=_PrintCapabilities,
        help="print what this back-end can do, as JSON, and exit",
    )


class _PrintCapabilities(argparse.Action):
    """Print the capabilities and exit, even if the rest of the line is wrong."""

    # QEMU's vhost-user.rst, "Backend program conventions": with this option a back-end
    # should ignore all other options and arguments.  An action runs while argparse
    # still reads the line, before it misses the COMMAND.

    def __init__(self, **kwargs: Any) -> None:
        super().__init__(nargs=0, **kwargs)

    def __call__(self, parser: argparse.ArgumentParser, *_: Any) -> None:
        print(json.dumps(CAPABILITIES))
        parser.exit()

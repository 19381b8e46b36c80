# SPDX-License-Identifier: Apache-2.0
"""A real systemd-networkd beside the agent: it gives the TAP its address."""

from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import pytest

from tests.process.lab import SLAVE_ADDRESS, SLAVE_TAP, Lab
from tests.process.program import Program
from tests.waiting import wait_for

pytestmark = pytest.mark.process

NETWORKD = Path("/usr/lib/systemd/systemd-networkd")
TAPS = Path(__file__).parents[2] / "docs/taps.md"

# With a /sys that is read-only it waits for no udev, as in a container.
START = """
mount -t sysfs -o ro none /sys
mount -t tmpfs none /run
mkdir -p /run/systemd/network
for one in links leases lldp; do
    install -d -o "$3" /run/systemd/netif /run/systemd/netif/$one
done
printf '%s' "$2" > /run/systemd/network/50-vhostpci.network
exec "$1"
"""


def example() -> str:
    """Return the file of the document, for the lab's TAP and address."""
    text = TAPS.read_text().split("## Who has the TAP's addresses")[1]
    file = text.split("```ini\n")[1].split("```")[0]
    return file.replace("net0", SLAVE_TAP).replace("10.0.0.2", SLAVE_ADDRESS)


@pytest.fixture
def networkd(lab: Lab, tmp_path: Path) -> Iterator[Program]:
    if not NETWORKD.exists():
        pytest.skip(f"no {NETWORKD}: apt install systemd")
    argv = ("unshare", "--mount", "sh", "-ec", START, "sh", str(NETWORKD), example())
    program = Program(
        [*lab.slave.prefix, *argv, "systemd-network"], tmp_path / "networkd.log"
    )
    with closing(program):
        yield program


def has_address(lab: Lab) -> bool:
    shown = lab.run_in_slave("ip", "-o", "addr", "show", SLAVE_TAP).stdout
    return f"inet {SLAVE_ADDRESS}/24" in shown


def test_networkd_gives_a_tap_its_address_which_stays_without_a_driver(
    lab: Lab, networkd: Program
) -> None:
    lab.start_daemon()
    lab.start_agent_by(lab.agent_argv())
    master = lab.start_master()
    master.load()
    wait_for(lambda: has_address(lab), f"networkd acts\n{networkd.log}")
    lab.wait_carrier("UP")
    assert lab.ping_from_master() == 5
    master.unload()
    lab.wait_carrier("NO-CARRIER")
    # It would remove the address within some milliseconds; the agent goes on meanwhile.
    assert has_address(lab)
    master.load()
    lab.wait_carrier("UP")
    assert lab.ping_from_master() == 5

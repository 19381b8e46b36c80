# SPDX-License-Identifier: Apache-2.0
"""The counters of `vhostpci-guest stats`, by the names that Open vSwitch uses.

rx and tx are seen from this slave, as in `ip -s link show TAP`: rx is what comes from
the master.  The rings are named from the master's side, so the master's transmit ring
has what is rx here.  docs/agent.md explains each counter; a test compares.
"""

import time
from collections.abc import Iterator
from typing import Any

from vhostpci_shared import units
from vhostpci_shared.terminal import Styled, Terminal

from ..errors import Unusable

_RX_ERRORS = {"rx_error_length": "drop_bad", "rx_error_header": "drop_refused"}
_RX_DROPS = {
    "rx_drop_memory": "drop_memory",
    "rx_drop_down": "drop_down",
    "rx_drop_other": "drop_other",
}
_TX_ERRORS = {
    "tx_error_read": "drop_read",
    "tx_error_short": "drop_runt",
    "tx_error_long": "drop_long",
}
_TX_DROPS = {"tx_drop_no_room": "drop_no_room", "tx_drop_stop": "drop_stop"}

# Each counter with the counts of a ring (Stats in dataplane/interface.py) that it sums.
_RX = {
    "rx_packets": ("packets",),
    "rx_bytes": ("bytes",),
    "rx_errors": tuple(_RX_ERRORS.values()),
    "rx_dropped": tuple(_RX_DROPS.values()),
    **{name: (count,) for name, count in (_RX_ERRORS | _RX_DROPS).items()},
    "rx_tap_full": ("tap_full",),
    "rx_segmented": ("segmented",),
}
_TX = {
    "tx_packets": ("packets",),
    "tx_bytes": ("bytes",),
    "tx_errors": tuple(_TX_ERRORS.values()),
    "tx_dropped": tuple(_TX_DROPS.values()),
    **{name: (count,) for name, count in (_TX_ERRORS | _TX_DROPS).items()},
    "tx_no_buffers": ("no_buffers",),
    "tx_spilled": ("spilled",),
    "tx_bad_chains": ("bad_chains",),
}
_BOTH = {
    "kicks": ("kicks",),
    "kicks_suppressed": ("kicks_suppressed",),
    "polls": ("polls",),
    "calls": ("calls",),
    "calls_suppressed": ("calls_suppressed",),
    "used_updates": ("used_updates",),
    "faults": ("faults",),
}

ALWAYS = (
    *("rx_packets", "rx_bytes", "rx_errors", "rx_dropped"),
    *("tx_packets", "tx_bytes", "tx_errors", "tx_dropped"),
)
"""Counters that are printed although they are 0."""


def _batch(power: int, last: bool) -> str:
    """Return the name of the batches of 2^power chains and more."""
    low, high = 2**power, 2 ** (power + 1) - 1
    if last:
        return f"batches_{low}_and_more"
    return f"batches_{low}_to_{high}" if power else "batches_1"


def _ring(ring: dict[str, Any]) -> dict[str, int]:
    """Return the counters of one ring."""
    stats = ring["stats"]
    # VIRTIO, "Network Device", "Virtqueues": even numbers are receive queues.
    way, own = ("tx", _TX) if ring["ring"] % 2 == 0 else ("rx", _RX)
    sums = {**own, **{f"{way}_{name}": counts for name, counts in _BOTH.items()}}
    batches = stats["batches"]
    return {
        **{name: sum(stats[one] for one in counts) for name, counts in sums.items()},
        **{
            f"{way}_{_batch(power, power == len(batches) - 1)}": count
            for power, count in enumerate(batches)
        },
    }


def _add(total: dict[str, int], more: dict[str, int]) -> None:
    for name, count in more.items():
        total[name] = total.get(name, 0) + count


def statistics(link: dict[str, Any]) -> dict[str, Any]:
    """Return the counters of a device, from its entry of the status.

    They are those since they were cleared; `since` says when that was.

    Raises:
        Unusable: the agent is of an earlier version, and does not send them.
    """
    shown = _counted(link)
    base = link.get("cleared")
    if base is not None:
        before = _counted({**link, **base})
        pairs = {one["pair"]: one["statistics"] for one in before["queue_pairs"]}
        found = [(shown["statistics"], before["statistics"])]
        found += [
            (one["statistics"], pairs.get(one["pair"], {}))
            for one in shown["queue_pairs"]
        ]
        # A data plane that was made again has begun at 0.
        if not any(_is_below(*one) for one in found):
            for one, less in found:
                _subtract(one, less)
            shown["since"] = base["at"]
    return shown


def _is_below(counters: dict[str, int], before: dict[str, int]) -> bool:
    return any(counters.get(name, 0) < value for name, value in before.items())


def _subtract(counters: dict[str, int], before: dict[str, int]) -> None:
    for name, value in before.items():
        counters[name] = counters.get(name, 0) - value


def _counted(link: dict[str, Any]) -> dict[str, Any]:
    """Return the counters of a device since its data plane was made.

    Raises:
        Unusable: the agent is of an earlier version, and does not send them.
    """
    total = dict.fromkeys(ALWAYS, 0)
    pairs: dict[int, dict[str, int]] = {}
    for ring in link["rings"]:
        if "stats" not in ring:
            raise Unusable(
                f"the agent with pid {link['pid']} is of an earlier version, and does "
                "not count what this command shows: restart it",
                code="G018",
            )
        counters = _ring(ring)
        _add(total, counters)
        _add(pairs.setdefault(ring["ring"] // 2, {}), counters)
    # A data plane that cannot count for each ring may know the sum.
    totals = link.get("totals", {})
    total.update(totals)
    # By the names of the status; an older agent counts all.
    not_counted = link.get("not_counted", [])
    # The kernel counts these for the whole TAP; none while that cannot be looked at.
    total["tx_tap_dropped"] = link.get("tap_dropped") or 0
    return {
        **{key: link[key] for key in ("name", "device", "tap", "pid")},
        "not_counted": [name for name in not_counted if _totals_of(name) not in totals],
        "since": None,
        "statistics": total,
        "queue_pairs": [
            {"pair": n, "not_counted": not_counted, "statistics": one}
            for n, one in pairs.items()
        ],
    }


def _totals_of(name: str) -> str:
    """Return the name among a device's totals of a ring's count."""
    return {"packets": "rx_packets", "octets": "rx_bytes"}.get(name, "")


def select(devices: list[dict[str, Any]], name: str) -> list[dict[str, Any]]:
    """Return the devices of this name, TAP, or PCI address or socket.

    Raises:
        Unusable: there is none.
    """
    found = [one for one in devices if name in (one["name"], one["tap"], one["device"])]
    if not found:
        there = ", ".join(str(one["name"] or one["device"]) for one in devices)
        raise Unusable(
            f"no agent serves {name}; served: {there or 'no device'}", code="G019"
        )
    return found


def stats_text(device: dict[str, Any], terminal: Terminal) -> list[str]:
    """Return the lines for a device; most counters that are 0 are left out."""
    name = Styled(device["name"] or "(no name yet)", "name")
    port = f"TAP {device['tap'] or '(none yet)'}, pid {device['pid']}"
    if device["since"] is not None:
        port += f", since {time.strftime('%F %T', time.localtime(device['since']))}"
    lines = ["  ".join(map(terminal.paint, (device["device"], name, port)))]
    header = ("COUNTER", "RX", "TX")
    rows = list(_rows(device["statistics"]))
    lines += terminal.table(rows, header, indent=2, right=(1, 2))
    if device["not_counted"]:
        text = f"not counted, so 0 here: {', '.join(device['not_counted'])}"
        lines += terminal.wrapped(text, indent=2)
    return lines


def _rows(counters: dict[str, int]) -> Iterator[list[str]]:
    """Yield a row for each counter of a direction, with both directions."""
    shown = dict.fromkeys(
        name[3:] for name, value in counters.items() if value or name in ALWAYS
    )
    for name in shown:
        values = (counters.get(f"{way}_{name}") for way in ("rx", "tx"))
        yield [name, *("" if one is None else units.count(one) for one in values)]

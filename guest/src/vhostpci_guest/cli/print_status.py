# SPDX-License-Identifier: Apache-2.0
"""What `vhostpci-guest status` prints for people.

An agent of an earlier version sends fewer keys: what it does not say is left out.
"""

from collections.abc import Container, Iterator
from typing import Any

from vhostpci_shared.errors import with_code
from vhostpci_shared.metadata_numbers import SLAVE_ID
from vhostpci_shared.terminal import Styled, Terminal
from vhostpci_shared.units import confined, count, short, size

from ..pci.binding_names import signals

Field = tuple[str, str]
"""A label and its text."""
_COLUMN = 9
_STATES = {"ready": "good", "running": "good", "failed": "bad", "broken": "bad"}
_STATES |= {"mismatch": "bad", "waiting": "warn", "fenced": "warn"}


def link_text(link: dict[str, Any], terminal: Terminal) -> list[str]:
    """Return the lines of one device's entry of the status."""
    name = Styled(link["name"] or "(no name yet)", "name")
    head = [link["device"], name, _state(link["state"])]
    lines = ["  ".join(map(terminal.paint, head))]
    lines += terminal.fields(_fields(link), column=_COLUMN)
    rows = list(_rings(link))
    header = _HEADER if rows else ()
    lines += terminal.table(rows, header, indent=2, right=range(3, 10))
    lines += terminal.fields(_ring_notes(link), column=_COLUMN)
    return lines


def _state(word: str) -> str:
    return Styled(word, _STATES.get(word, "dim"))


def _fields(link: dict[str, Any]) -> Iterator[Field]:
    if link["message"]:
        yield Styled("problem", "bad"), link["message"]
    master = "connected" if link["master"] else "not connected"
    alive = "good" if link["daemon"] == "alive" else "bad"
    yield "daemon", Styled(f"{link['daemon']}, master {master}", alive)
    yield "agent", ", ".join(_agent(link))
    yield "binding", f"{link['binding']} ({signals(link['interrupts'])})"
    carrier = "on" if link["carrier"] else "off"
    yield "port", f"{_port_text(link)}, carrier {carrier}"
    if "data_plane" in link:
        reason = link.get("data_plane_reason")
        yield "plane", f"{link['data_plane']}" + (f" ({reason})" if reason else "")
    if totals := link.get("totals"):
        yield "counted", _totals(totals)
    # An agent of an earlier version does not know.
    if link.get("confined"):
        yield "confined", confined(link["confined"])
    yield "window", f"{SLAVE_ID}: {_speed_text(link['speed'])}"
    for window in link["windows"]:
        yield "window", f"{window['id']}: {_window_text(window)}"


def _agent(link: dict[str, Any]) -> Iterator[str]:
    yield f"pid {link['pid']}"
    if "version" in link:
        yield f"version {link['version']}"
    if "uid" in link:
        rights = ", ".join(link["capabilities"]) or "no capability"
        yield f"runs as user {link['uid']} with {rights}"


def _port_text(link: dict[str, Any]) -> str:
    """Return where the packets go: a TAP, or another process."""
    if "socket" not in link:
        bridge = f" in bridge {link['bridge']}" if link["bridge"] else ""
        return f"TAP {link['tap'] or '(none yet)'}{bridge}"
    back_end = link.get("back_end")
    who = f"back-end pid {back_end['pid']}" if back_end else "no back-end"
    return f"socket {link['socket'] or '(none yet)'}, {who}"


def _totals(totals: dict[str, int]) -> str:
    """Return what a data plane has counted that knows no single ring."""
    return ", ".join(
        f"{count(totals[f'{way}_packets'])} packets and "
        f"{count(totals[f'{way}_bytes'])} bytes {direction} the master"
        for way, direction in (("rx", "from"), ("tx", "to"))
    )


_COUNTS = ("packets", "octets", "drops", "kicks", "calls")
_HEADER = (
    *("RING", "MASTER", "STATE", "INDEX", "FILL"),
    *("PACKETS", "BYTES", "DROPPED", "KICKS", "CALLS"),
)


def _rings(link: dict[str, Any]) -> Iterator[list[str]]:
    """Yield a row for each ring; what is not counted is no 0."""
    unknown: Container[str] = link.get("not_counted", ())
    for ring in link["rings"]:
        fill = ring.get("fill")
        yield [
            str(ring["ring"]),
            # VIRTIO, "Network Device", "Virtqueues": receiveq1, transmitq1, ...  These
            # names are the master's: what it receives is what this machine sends.
            "to" if ring["ring"] % 2 == 0 else "from",
            _state(ring["state"]),
            *(str(ring["index"]), "-" if fill is None else str(fill)),
            *("-" if one in unknown else short(ring[one]) for one in _COUNTS),
        ]


def _ring_notes(link: dict[str, Any]) -> Iterator[Field]:
    for ring in link["rings"]:
        notes = [f"by {ring['method']}"] if ring["method"] else []
        if ring["method_reason"]:
            notes.append(f"not by io_uring: {ring['method_reason']}")
        if ring.get("format") == "packed":
            notes.append("packed")
        if ring["reason"]:
            notes.append(with_code(ring["reason"], ring.get("code", "")))
        if notes:
            yield f"ring {ring['ring']}", "; ".join(notes)


def _window_text(window: dict[str, Any]) -> str:
    # The metadata names it, but its function is not plugged or not bound yet.
    if window["device"] is None:
        return "not there yet"
    speed = _speed_text(window["speed"])
    return f"{window['device']}, {size(window['size'])}, {speed}"


def _speed_text(speed: dict[str, Any] | None) -> str:
    if speed is None:
        return "not measured"
    text = f"reads {speed['mbps']:.0f} MB/s (own memory {speed['own_mbps']:.0f} MB/s)"
    return f"{text}: looks uncached" if speed["slow"] else text

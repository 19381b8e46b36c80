# SPDX-License-Identifier: Apache-2.0
"""What `vhostpci-guest status` prints for people."""

from collections.abc import Container
from typing import Any

from ..pci.binding_names import signals

# Not imported from vhostpci_shared.metadata: making that module's dataclasses takes
# longer than all other work of this command.  A unit test compares the two.
OWN_WINDOW = 0
"""The number of a device's own window, `metadata.SLAVE_ID`."""


def print_link(link: dict[str, Any]) -> None:
    """Print one device's entry of the status."""
    how = signals(link["interrupts"])
    carrier = "on" if link["carrier"] else "off"
    print(
        f"{link['device']}  {link['name'] or '(no name yet)'}  {link['state']}"
        f"  {link['binding']} ({how}), pid {link['pid']}"
    )
    if link["message"]:
        print(f"  {link['message']}")
    master = "connected" if link["master"] else "not connected"
    print(f"  daemon {link['daemon']}, master {master}")
    if "uid" in link:  # an older agent does not say it, and may still run
        rights = ", ".join(link["capabilities"]) or "no capability"
        print(f"  runs as user {link['uid']} with {rights}")
    print(f"  {_port_text(link)}, carrier {carrier}")
    print(f"  window {OWN_WINDOW}: {_speed_text(link['speed'])}")
    for window in link["windows"]:
        print(f"  window {window['id']}: {_window_text(window)}")
    if "data_plane" in link:  # an older agent does not say it
        reason = link.get("data_plane_reason")
        print(f"  data plane {link['data_plane']}" + (f" ({reason})" if reason else ""))
    for ring in link["rings"]:
        _print_ring(ring, link.get("not_counted", ()))


def _port_text(link: dict[str, Any]) -> str:
    """Return where the packets go: a TAP, or another process."""
    if "socket" not in link:
        bridge = f" in bridge {link['bridge']}" if link["bridge"] else ""
        return f"TAP {link['tap'] or '(none yet)'}{bridge}"
    back_end = link.get("back_end")
    who = f"back-end pid {back_end['pid']}" if back_end else "no back-end"
    return f"socket {link['socket'] or '(none yet)'}, {who}"


_COUNTS = {
    "packets": "packets",
    "octets": "bytes",
    "drops": "dropped",
    "kicks": "kicks",
    "calls": "calls",
}


def _print_ring(ring: dict[str, Any], not_counted: Container[str]) -> None:
    # VIRTIO, "Network Device", "Virtqueues": receiveq1, transmitq1, receiveq2, ...
    # These names are the master's: what it receives is what this machine sends.
    side = "to the master" if ring["ring"] % 2 == 0 else "from the master"
    by = f", by {ring['method']}" if ring["method"] else ""
    # A back-end that is not ours may count for itself: a 0 would be a lie.
    counts = [
        f"{ring[n]} {text}" for n, text in _COUNTS.items() if n not in not_counted
    ]
    print(
        f"  ring {ring['ring']} ({side}) {ring['state']} at {ring['index']}: "
        f"{', '.join(counts) or 'no counts'}{by}"
    )
    if ring["method_reason"]:
        print(f"    not by io_uring: {ring['method_reason']}")
    if ring["reason"]:
        print(f"    {ring['reason']}")


def _window_text(window: dict[str, Any]) -> str:
    # The metadata names it, but its function is not plugged or not bound yet.
    if window["device"] is None:
        return "not there yet"
    speed = _speed_text(window["speed"])
    return f"{window['device']}, {window['size']} bytes, {speed}"


def _speed_text(speed: dict[str, Any] | None) -> str:
    if speed is None:
        return "not measured"
    text = f"reads {speed['mbps']:.0f} MB/s (own memory {speed['own_mbps']:.0f} MB/s)"
    return f"{text}: looks uncached" if speed["slow"] else text

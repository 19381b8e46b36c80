# SPDX-License-Identifier: Apache-2.0
"""Checks of the agents, and of what they say of the daemon and the master."""

from collections.abc import Iterator

from vhostpci_shared.findings import CannotLook, Seen, error, ok, warn

from .functions import beats, explained
from .slave import Link, Slave, each_link

_STATUS = "vhostpci-guest status"
_STUCK = ("broken", "fenced")


def serves(slave: Slave) -> Iterator[Seen]:
    """Look whether an agent serves each device."""
    if slave.forbidden:
        raise CannotLook(slave.forbidden)
    for why in slave.problems:
        yield error(
            _STATUS,
            why,
            means="its devices are not looked at here; it may serve them",
            repair="look at its log (journalctl -u vhostpci-guest); restart it if it "
            "hangs",
        )
    for link in slave.links:
        yield _state(link)
    # An agent that does not answer may serve the others.
    for device in slave.unserved if not slave.problems else ():
        if not explained(slave, device):
            yield error(
                _STATUS,
                "no agent serves it",
                about=device["address"],
                means="no packet crosses",
                repair="vhostpci-guest run, or systemctl start vhostpci-guest",
            )


def _state(link: Link) -> Seen:
    about = link["name"] or link["device"]
    if link["state"] == "ready":
        return ok(_STATUS, f"pid {link['pid']} serves it", about=about)
    return error(
        _STATUS,
        f"{link['state']}: {link['message']}",
        about=about,
        means="the agent is there, and runs no ring",
        repair='what that line says; docs/operations.md, "When it does not work"',
    )


def daemon(slave: Slave) -> Iterator[Seen]:
    """Look whether the daemon of each device lives."""
    for link in slave.links:
        about = link["name"] or link["device"]
        if link["daemon"] == "alive":
            # An agent of an earlier version does not say when.
            beat = f", {link['daemon_silent']} s ago" if "daemon_silent" in link else ""
            yield ok(_STATUS, f"it beats{beat}", about=about)
        elif link["daemon"] == "silent":
            yield _silent(about)
        else:
            yield error(
                _STATUS,
                link["daemon"],
                about=about,
                means="the daemon was started again, and a QEMU's ivshmem device does "
                "not connect again",
                repair="unplug the device and plug it again, or restart this VM",
            )
    for device in slave.unserved:
        seen = slave.peek(device["address"])
        if seen is None or explained(slave, device):
            continue
        if beats(seen):
            yield ok("BAR 2", "its heartbeat goes on", about=device["address"])
        else:
            yield _silent(device["address"])


def _silent(about: str) -> Seen:
    return error(
        "the heartbeat in the metadata",
        "it stands still",
        about=about,
        means="the daemon on the hypervisor has ended or hangs; all rings are stopped",
        repair="on the hypervisor: vhostpci-host doctor; systemctl start vhostpci-host",
    )


@each_link
def master(slave: Slave, link: Link) -> Iterator[Seen]:
    """Look whether a master is connected."""
    del slave
    if link["master"]:
        yield ok(_STATUS, "it is connected")
        return
    yield warn(
        _STATUS,
        "no master is connected",
        means="no packet crosses, and the TAP has no carrier",
        repair="start the master; vhostpci-host status on the hypervisor says more",
    )


@each_link
def rings(slave: Slave, link: Link) -> Iterator[Seen]:
    """Look whether the rings run."""
    del slave
    stuck = [one for one in link["rings"] if one["state"] in _STUCK]
    for ring in stuck:
        yield error(
            _STATUS,
            f"ring {ring['ring']} is {ring['state']}: {ring['reason']}",
            means="the master's driver wrote what no driver may, or another has it",
            repair="in the master: reload the driver virtio_net, or reboot",
        )
    if stuck:
        return
    running = [one for one in link["rings"] if one["state"] == "running"]
    if not running:
        raise CannotLook("no ring runs: the master's driver is not loaded")
    yield ok(_STATUS, f"{len(running)} run")


@each_link
def windows(slave: Slave, link: Link) -> Iterator[Seen]:
    """Look whether all windows of the master's memory are there."""
    del slave
    absent = [one["id"] for one in link["windows"] if one["device"] is None]
    if not absent:
        yield ok(_STATUS, f"window 0 and {len(link['windows'])} more")
        return
    yield error(
        _STATUS,
        f"window {', '.join(map(str, absent))} is not there yet",
        means="no ring runs until all of the master's memory can be seen",
        repair="dmesg | grep -i BAR; on the hypervisor vhostpci-host doctor looks at "
        "the root ports",
    )


@each_link
def speed(slave: Slave, link: Link) -> Iterator[Seen]:
    """Look whether reads of the windows are cached."""
    del slave
    own = [(0, link["speed"]), *((one["id"], one["speed"]) for one in link["windows"])]
    measured = [(number, one) for number, one in own if one is not None]
    slow = [number for number, one in measured if one["slow"]]
    if not measured:
        raise CannotLook("no window is measured yet")
    if not slow:
        yield ok(_STATUS, "as fast as its own memory")
        return
    yield warn(
        _STATUS,
        f"window {', '.join(map(str, slow))} looks uncached",
        means="each read of the master's memory goes over the bus",
        repair="uio_vhostpci (kmod/README.md), and a window above 4 GiB: "
        'docs/agent.md, "Cached or not"',
    )

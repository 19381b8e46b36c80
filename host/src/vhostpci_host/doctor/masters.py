# SPDX-License-Identifier: Apache-2.0
"""Checks of the masters' QEMUs, by their command lines, and of what masters accept."""

from collections.abc import Iterator

from vhostpci_shared.findings import CannotLook, Seen, error, ok, warn

from ..config.commands import master_arguments
from ..interfaces import Json
from .command_line import CommandLine, Values, is_on
from .hypervisor import Hypervisor, each_device, process

_GUEST_OFFLOADS = {"NET_F_GUEST_TSO4", "NET_F_GUEST_TSO6", "NET_F_GUEST_USO4"}
_CARD = "virtio-net-pci"


def _status(device: Json) -> str:
    return f"vhostpci-host status {device['name']}"


@each_device
def chardevs(host: Hypervisor, device: Json) -> Iterator[Seen]:
    """Look whether QEMUs use the sockets in the right role and direction."""
    looked = False
    for pid, line in host.qemus():
        for role, path in (
            ("master", device["sockets"]["vhost_user"]),
            ("slave", device["sockets"]["ivshmem"]),
        ):
            for chardev in line.sockets(path):
                looked = True
                yield _chardev(pid, line, chardev, role, device)
    if not looked:
        raise CannotLook("no QEMU here has one of its sockets on its command line")


def _chardev(
    pid: int, line: CommandLine, chardev: Values, role: str, device: Json
) -> Seen:
    looked_at, name = f"{process(pid)}/cmdline", chardev.get("id", "")
    used_by_card = any(one.get("chardev") == name for one in line.all("netdev"))
    used_by_slave = any(
        one.get("chardev") == name for one in line.devices("ivshmem-doorbell")
    )
    if used_by_slave if role == "master" else used_by_card:
        return error(
            looked_at,
            f"pid {pid} uses {chardev['path']} as a "
            f"{'slave' if role == 'master' else 'master'}",
            means="it waits at the other role's socket, and hangs at its start",
            repair=f"the master's socket is {device['sockets']['vhost_user']}, the "
            f"slave's {device['sockets']['ivshmem']}",
        )
    listens = is_on(chardev, "server")
    wanted = role == "master" and bool(device.get("connects"))
    if listens != wanted:
        return error(
            looked_at,
            f"pid {pid} has server={'on' if listens else 'off'} for {chardev['path']}",
            means="QEMU removes the daemon's socket and listens there instead"
            if listens
            else "the daemon connects to this device's master (--connect), which has "
            "to listen",
            repair=f"server={'on' if wanted else 'off'} in its -chardev (libvirt: "
            f"mode='{'server' if wanted else 'client'}'), then start it again",
        )
    return ok(looked_at, f"pid {pid} is its {role}, server={'on' if wanted else 'off'}")


@each_device
def reconnects(host: Hypervisor, device: Json) -> Iterator[Seen]:
    """Look whether the master connects again after a restart of the daemon."""
    if device.get("connects"):
        yield ok(_status(device), "the daemon connects, again and again")
        return
    pid, line = host.peer_line(device, "master")
    looked_at = f"{process(pid)}/cmdline"
    for chardev in line.sockets(device["sockets"]["vhost_user"]):
        given = next(
            (
                f"{key}={chardev[key]}"
                for key in ("reconnect", "reconnect-ms")
                if chardev.get(key, "0") != "0"
            ),
            None,
        )
        if given is not None:
            yield ok(looked_at, given)
            continue
        yield warn(
            looked_at,
            "its chardev has neither reconnect-ms= nor reconnect=",
            means="when the daemon ends without a keeper, the master's card stays "
            "without a link until the VM is started again",
            repair="reconnect-ms=1000 (before QEMU 9.2 reconnect=1) in its -chardev, "
            f"as {master_arguments(device['name'], device['mode'])} prints it",
        )


@each_device
def offloads(host: Hypervisor, device: Json) -> Iterator[Seen]:
    """Look whether the master's guest can switch offloads off behind our back."""
    pid, line = host.peer_line(device, "master")
    looked_at = f"{process(pid)}/cmdline"
    card = card_of(device, line)
    if card is None:
        raise CannotLook(f"{looked_at} has no {_CARD} at the device's socket")
    if is_on(card, "ctrl_guest_offloads", "on"):
        yield warn(
            looked_at,
            "its card is without ctrl_guest_offloads=off",
            means="a guest that switches receive offloads off while it runs (XDP, "
            "ethtool -K) goes on getting packets of up to 64 KiB",
            repair=f"ctrl_guest_offloads=off in its -device {_CARD}",
        )
        return
    on = sorted(_GUEST_OFFLOADS & set(device["master"]["features"]))
    if on:
        yield ok(
            looked_at,
            f"receive offloads are on: {', '.join(on)}",
            means="for XDP in the master append guest_csum=off,guest_tso4=off,"
            f"guest_tso6=off,guest_ecn=off,guest_ufo=off to its -device {_CARD}",
        )
    else:
        yield ok(looked_at, "no receive offloads: the master may use XDP")


def card_of(device: Json, line: CommandLine) -> Values | None:
    """Return the card whose chardev is at the device's socket."""
    names = {one.get("id") for one in line.sockets(device["sockets"]["vhost_user"])}
    netdevs = {
        one.get("id") for one in line.all("netdev") if one.get("chardev") in names
    }
    cards = line.all("device")
    return next((one for one in cards if one.get("netdev") in netdevs), None)


@each_device
def features(host: Hypervisor, device: Json) -> Iterator[Seen]:
    """Look whether the data plane serves what the master's driver has accepted."""
    del host
    found = device.get("features")
    if found is None:
        raise CannotLook("the daemon is of an earlier version, which does not say it")
    if found["mismatch"]:
        yield error(
            _status(device),
            found["mismatch"],
            means="the master booted when another data plane, or none, was there: no "
            "ring runs",
            repair="start the master again, or the agent with the earlier --data-plane",
        )
        return
    left = " ".join(found["withheld"])
    yield ok(_status(device), f"withheld: {left}" if left else "all that we have")


@each_device
def front_end(host: Hypervisor, device: Json) -> Iterator[Seen]:
    """Look whether a master is connected, and speaks."""
    del host
    state = device["state"]
    if device["master"] is None:
        problem = device.get("connect_problem")
        yield warn(
            _status(device),
            f"{state}{f': {problem}' if problem else ''}",
            means="there is no master: no packet crosses",
            repair="start the master; "
            f"{master_arguments(device['name'], device['mode'])} prints its arguments",
        )
    elif state == "front-end hangs":
        yield error(
            _status(device),
            f"{state}: {device['master']['problem']}",
            means="what is connected does not speak as a master does",
            repair=f"the master's socket is {device['sockets']['vhost_user']}; start "
            "its QEMU again",
        )
    else:
        pid = device["master"]["pid"]
        yield ok(_status(device), f"pid {pid} is connected")


@each_device
def carrier(host: Hypervisor, device: Json) -> Iterator[Seen]:
    """Look whether the master's card has its carrier, and loses it without an agent."""
    del host
    found = device.get("carrier")
    if not found:
        raise CannotLook("the daemon is of an earlier version, which does not say it")
    if found["problem"]:
        yield warn(
            _status(device),
            found["problem"],
            means="the master sends to a card behind which there is no agent",
            repair="reconnect-ms=1000 (before QEMU 9.2 reconnect=1) in its -chardev",
        )
    elif found.get("refused"):
        yield error(
            _status(device),
            f"{found['why_off']}: {found['refused']}",
            means="its QEMU is kept out until it ends, and its card has no carrier",
            repair="end the master's QEMU, and start it with the memory of "
            f"`{master_arguments(device['name'], device['mode'])}`",
        )
    elif found["off"]:
        yield warn(
            _status(device),
            f"off: {found['why_off']}",
            means="the master's guest sees a cable that is not plugged in",
            repair="start the agent: the carrier comes back by itself",
        )
    else:
        yield ok(_status(device), "it follows the agent")


@each_device
def rings(host: Hypervisor, device: Json) -> Iterator[Seen]:
    """Look whether the rings can run, and kicks go straight to the slave."""
    del host
    running = [one for one in device["rings"] if one["state"] == "running"]
    for ring in device["rings"]:
        if ring["problem"]:
            yield error(
                _status(device),
                f"{ring['queue']}: {ring['problem']}",
                means="this ring cannot run until the master's driver starts it again",
                repair="in the master: reload the driver virtio_net, or reboot",
            )
            return
    if not running:
        raise CannotLook("no ring runs: the master's driver is not loaded")
    yield ok(_status(device), f"{len(running)} of {len(device['rings'])} run")


@each_device
def kicks(host: Hypervisor, device: Json) -> Iterator[Seen]:
    """Look whether the daemon has to pass kicks on."""
    del host
    running = [one for one in device["rings"] if one["state"] == "running"]
    if not running or device["slave"] is None:
        raise CannotLook("no ring runs with a slave")
    relayed = [one for one in running if not one["kick_direct"]]
    if not relayed:
        yield ok(_status(device), "they go straight to the slave")
        return
    count = sum(one["kicks_relayed"] for one in relayed)
    yield warn(
        _status(device),
        f"{', '.join(one['queue'] for one in relayed)}: {count} relayed",
        means="the slave connected before the master had these kicks, so each passes "
        "the daemon, which costs some microseconds",
        repair="restart the slave VM, or plug its device again, while the master "
        "runs (docs/performance.md)",
    )

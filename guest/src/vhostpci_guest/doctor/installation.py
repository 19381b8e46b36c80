# SPDX-License-Identifier: Apache-2.0
"""Checks of what is installed in the slave."""

from collections.abc import Iterator

from vhostpci_shared.findings import CannotLook, Seen, error, look_safely, ok, warn
from vhostpci_shared.machine import Machine
from vhostpci_shared.systemd_unit import look_at_unit

from .slave import Link, Slave, each_link, possible

_UNIT = "vhostpci-guest.service"
_LIBUDEV = "libudev.so.1"
_LIBRARIES = (
    "/lib/x86_64-linux-gnu",
    "/usr/lib/x86_64-linux-gnu",
    "/lib64",
    "/usr/lib64",
    "/lib",
    "/usr/lib",
)
_MODULE = "uio_vhostpci"
_FULL = 0.8
"""The part of a limit whose use is worth a warning."""


def architecture(slave: Slave) -> Iterator[Seen]:
    """Look whether it is an x86-64."""
    found = slave.machine.architecture
    if found == "x86_64":
        yield ok("uname -m", found)
        return
    yield error(
        "uname -m",
        found,
        means="the agent runs on x86-64 only",
        repair="take an x86-64 slave",
    )


def libudev(slave: Slave) -> Iterator[Seen]:
    """Look whether the library is there by which the agent finds devices."""
    for directory in _LIBRARIES:
        path = f"{directory}/{_LIBUDEV}"
        if slave.machine.exists(path):
            yield ok(path, "it is there")
            return
    yield error(
        ", ".join(_LIBRARIES),
        f"there is no {_LIBUDEV}",
        means="the agent cannot look for devices; with --device it needs none",
        repair="apt install libudev1",
    )


def tun(slave: Slave) -> Iterator[Seen]:
    """Look whether TAPs can be made."""
    path = "/dev/net/tun"
    if slave.machine.exists(path):
        yield ok(path, "it is there")
        return
    yield error(
        path,
        "it is not there",
        means="the agent cannot make a TAP",
        repair="modprobe tun; in a container, give it the node (--device /dev/net/tun)",
    )


def unit(slave: Slave) -> Iterator[Seen]:
    """Look whether systemd finds the program that its unit names."""
    yield from look_at_unit(slave.machine, _UNIT, slave.program)


def module(slave: Slave) -> Iterator[Seen]:
    """Look whether the modules are there, and the loaded one is the installed one."""
    yield from look_safely(lambda: _loaded_module(slave.machine))
    for device in slave.devices:
        why = device["bindings"]["vfio"]["why_not"]
        others = [one for name, one in device["bindings"].items() if name != "vfio"]
        waits_for_it = not any(
            one["interrupts"] and one["why_not"] is None for one in others
        )
        # Without an IOMMU group the module alone would not help: `iommu` says so.
        if why and waits_for_it and possible(device) and "vIOMMU" not in why:
            yield warn(
                "modprobe -n vfio-pci",
                why,
                about=device["address"],
                means="the agent polls",
                repair="install the kernel package that has vfio-pci (Debian: "
                "linux-image-amd64, not -cloud), or uio_vhostpci (kmod/README.md)",
            )


def _loaded_module(machine: Machine) -> Iterator[Seen]:
    path = f"/sys/module/{_MODULE}/srcversion"
    loaded = machine.text_if_there(path)
    if loaded is None:
        yield ok(f"/sys/module/{_MODULE}", "it is not loaded; vfio-pci does without")
        return
    said = machine.run("modinfo", "-F", "srcversion", _MODULE)
    if said.status:
        raise CannotLook(f"modinfo {_MODULE}: {said.error.strip()}")
    if said.out.strip() == loaded.strip():
        yield ok(path, "the loaded module is the installed one")
        return
    yield warn(
        path,
        f"{loaded.strip()} is loaded, and {said.out.strip()} is installed",
        means="the module was updated, and the kernel goes on with the earlier one",
        repair=f"systemctl stop vhostpci-guest; rmmod {_MODULE}; modprobe {_MODULE}; "
        "systemctl start vhostpci-guest",
    )


@each_link
def version(slave: Slave, link: Link) -> Iterator[Seen]:
    """Look whether the agents are those that are installed."""
    running, looked_at = link.get("version"), "vhostpci-guest status -j"
    if running == slave.version:
        yield ok(looked_at, f"{running}, as installed")
        return
    yield warn(
        looked_at,
        f"it runs {running or 'an earlier one'}, and {slave.version} is installed",
        means="it was not restarted since the last upgrade",
        repair="systemctl restart vhostpci-guest",
    )


@each_link
def descriptors(slave: Slave, link: Link) -> Iterator[Seen]:
    """Look whether the agents have descriptors left."""
    pid = link["pid"]
    used = len(slave.machine.names(f"/proc/{pid}/fd"))
    most = slave.machine.limit(pid, "Max open files")
    looked_at, found = f"/proc/{pid}/limits", f"{used} of {most or 'unlimited'}"
    if most is None or used < _FULL * most:
        yield ok(looked_at, found)
        return
    yield warn(
        looked_at,
        found,
        means="without descriptors the agent takes no further device",
        repair="LimitNOFILE= in its unit (systemctl edit vhostpci-guest), or ulimit -n",
    )

# SPDX-License-Identifier: Apache-2.0
"""The table of all checks of `vhostpci-guest doctor`; docs/doctor.md has the same."""

from vhostpci_shared.findings import Check

from . import agents, functions, installation, networks
from .slave import Slave

CHECKS: tuple[Check[Slave], ...] = (
    Check("architecture", "the processor is an x86-64", installation.architecture),
    Check("libudev", "`libudev.so.1` is there", installation.libudev),
    Check("tun", "`/dev/net/tun` is there", installation.tun),
    Check("unit", "systemd finds the program of the unit", installation.unit),
    Check("device", "a device 1af4:1110 is there, of revision 1", functions.present),
    Check("driver", "no other driver or process has the device", functions.driver),
    Check("window-place", "BAR 2 has an address", functions.place),
    Check("binding", "a way to bind the device, and the best", functions.binding),
    Check("module", "the kernel modules are there", installation.module),
    Check("iommu", "an IOMMU group, and `intel_iommu=on`", functions.iommu),
    Check("lockdown", "kernel lockdown leaves a way to bind", functions.lockdown),
    Check("vectors", "the MSI-X vectors are enough", functions.vectors),
    Check("position", "the IVPosition is one of ours", functions.position),
    Check("metadata", "magic, version and generation", functions.metadata),
    Check("agent", "an agent serves each device", agents.serves),
    Check("agent-version", "the agent is the installed one", installation.version),
    Check("descriptors", "the agent has descriptors left", installation.descriptors),
    Check("daemon", "the daemon's heartbeat goes on", agents.daemon),
    Check("master", "a master is connected", agents.master),
    Check("windows", "all windows are there", agents.windows),
    Check("window-speed", "reads of the windows are cached", agents.speed),
    Check("rings", "the rings run", agents.rings),
    Check("tap", "the TAP is up", networks.up),
    Check("tap-name", "no configuration waits for another name", networks.name),
    Check("tap-mac", "the TAP's MAC lasts, and is its alone", networks.mac),
    Check("machine-id", "no copy of this VM has the same MACs", networks.clones),
)
"""In the order in which a user would look: what is needed first comes first."""

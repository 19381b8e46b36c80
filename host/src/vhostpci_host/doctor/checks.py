# SPDX-License-Identifier: Apache-2.0
"""The table of all checks of `vhostpci-host doctor`; docs/doctor.md has the same."""

from vhostpci_shared.findings import Check

from . import confined, daemons, files, masters, memory, qemu, slaves
from .hypervisor import Hypervisor

CHECKS: tuple[Check[Hypervisor], ...] = (
    Check("architecture", "the processor is an x86-64", qemu.architecture),
    Check("kvm", "VMs run by KVM", qemu.kvm),
    Check("qemu-version", "the QEMU, and its version", qemu.version),
    Check("qemu-ivshmem", "that QEMU has `ivshmem-doorbell`", qemu.has_ivshmem),
    Check("unit", "systemd finds the program and the user of the unit", daemons.unit),
    Check("daemon", "a daemon answers", daemons.answers),
    Check("daemon-version", "the daemon is the installed one", daemons.version),
    Check("device", "no device has failed", daemons.failed),
    Check("descriptors", "descriptors are left", daemons.descriptors),
    Check(
        "cgroup-memory", "the control groups leave room for the memory", daemons.cgroup
    ),
    Check(
        "locked-memory", "a QEMU that locks its memory may do so", daemons.locked_memory
    ),
    Check("denials", "AppArmor and SELinux refused nothing", files.denials),
    Check("directories", "no other user may replace sockets and memory", files.writers),
    Check("socket-path", "QEMU can name the sockets: 107 bytes", files.path_length),
    Check("socket-place", "the sockets' paths lead to the daemon", files.place),
    Check("socket-access", "libvirt's QEMUs may use sockets and memory", files.access),
    Check("memory-room", "the file system has room for all memory", memory.room),
    Check("memory-place", "the arena's path leads to the daemon's file", memory.place),
    Check("memory-cleanup", "logind does not remove the arena", memory.cleanup),
    Check("memory-shared", "the master's memory is shared", memory.shared),
    Check("memory-regions", "all of the master's memory has a file", memory.regions),
    Check("memory-size", "the memory fits the window, BAR 2", memory.size),
    Check("confined-memory", "a confined master shares no more", confined.memory),
    Check("confined-card", "its card has no control queue", confined.card),
    Check("confined-devices", "no other device of it has the region", confined.devices),
    Check("confined-plugged", "nor one that was plugged later", confined.plugged),
    Check("confined-words", "the words of its kernel", confined.words),
    Check("huge-pages", "huge pages, which are not needed", memory.huge_pages),
    Check(
        "qemu-sockets", "QEMUs use the right socket, not as server", masters.chardevs
    ),
    Check("master", "a master is connected, and speaks", masters.front_end),
    Check("master-reconnect", "the master connects again", masters.reconnects),
    Check("master-offloads", "the master's offloads, and XDP", masters.offloads),
    Check("master-features", "its features are the data plane's", masters.features),
    Check("master-carrier", "the master's card has its carrier", masters.carrier),
    Check("rings", "the rings can run", masters.rings),
    Check("kicks", "kicks go straight to the slave", masters.kicks),
    Check("slave", "a slave is connected to this daemon", slaves.connection),
    Check("slave-vectors", "the slave's device has enough vectors", slaves.vectors),
    Check("slave-viommu", "the slave has a vIOMMU, or needs none", slaves.viommu),
    Check("slave-address-bits", "BAR 2 has a place in the slave", slaves.address_bits),
    Check("slave-root-ports", "all windows are plugged", slaves.root_ports),
    Check("agent", "an agent serves the device", slaves.agent),
    Check("agent-version", "the agent is of our version", slaves.version),
    Check("agent-heartbeat", "the agent was heard lately", slaves.heartbeat),
)
"""In the order in which a user would look: what is needed first comes first."""

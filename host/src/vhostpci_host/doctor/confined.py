# SPDX-License-Identifier: Apache-2.0
"""Checks of confined masters' QEMUs, by their command lines.

What the master's kernel does with its memory is not seen from here: for that there is
the script of `vhostpci-host master-check`.
"""

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import replace

from vhostpci_shared.findings import CannotLook, Seen, error, ok

from ..config.commands import master_arguments, master_check
from ..config.confined import CARD
from ..config.kernel_words import kernel_words, key, lacking, split
from ..interfaces import Json
from .command_line import CommandLine, Values, is_on, size_of
from .hypervisor import BACKEND, VHOST_USER, Hypervisor, each_device, mib, process
from .masters import card_of

_MONITOR = "qom-list, info network"
"""What the master's QEMU was asked."""

Look = Callable[[Json, str, CommandLine], Iterable[Seen]]

_ON = [name for name, on in CARD if on]
_OFF = [name for name, on in CARD if not on]
_VIOMMUS = ("intel-iommu", "amd-iommu", "virtio-iommu", "virtio-iommu-pci")
_NO_DMA = frozenset(
    {
        *("pcie-root-port", "ioh3420"),
        *("scsi-hd", "scsi-cd", "scsi-block", "scsi-generic"),  # of virtio-scsi
        *("virtconsole", "virtserialport", "isa-serial", "isa-debug-exit", "pvpanic"),
        *("VGA", "bochs-display"),  # their memory is their own
        "pc-dimm",  # the daemon refuses a second one that is shared
    }
)
"""Devices whose drivers put nothing into memory, beside virtio devices."""
_SHORT = ("nic", "net", "usb", "usbdevice", "audio", "soundhw", "hda", "hdb", "cdrom")
"""Options that add devices which use DMA."""
_SCREENS = ("none", "std", "virtio")
"""Values of -vga that add none which uses DMA by the kernel's interface."""


def _arguments(device: Json, line: CommandLine) -> str:
    """Return the command that prints the arguments of this master's QEMU."""
    return f"{master_arguments(device['name'], device['mode'])}{_machine_option(line)}"


def _script(device: Json, line: CommandLine) -> str:
    command = f"{master_check(device['name'], device['mode'])}{_machine_option(line)}"
    return f"{command} prints a script that looks"


def _machine_option(line: CommandLine) -> str:
    """Return the option by which our commands mean the machine that it has."""
    return " --machine virt" if _is_virt(_machine(line)) else ""


def each_confined(look: Look) -> Callable[[Hypervisor], Iterator[Seen]]:
    """Return the check that looks at the QEMU of each confined device's master."""

    @each_device
    def look_at(host: Hypervisor, device: Json) -> Iterator[Seen]:
        pid, line = host.peer_line(device, "master")
        if any(line.all("readconfig")):
            raise CannotLook(f"pid {pid} has further options in a file (-readconfig)")
        yield from look(device, f"{process(pid)}/cmdline", line)

    return lambda host: look_at(_with_confined_alone(host))


def _with_confined_alone(host: Hypervisor) -> Hypervisor:
    # A daemon of an earlier version has no confined devices, and does not say so.
    confined = [one for one in host.served if one.get("confined")]
    if not confined:
        raise CannotLook("no device is confined")
    return replace(host, devices=tuple(confined))


@each_confined
def card(device: Json, looked_at: str, line: CommandLine) -> Iterator[Seen]:
    """Look whether the card uses the shared region, and has no control queue."""
    found = card_of(device, line)
    if found is None:
        raise CannotLook(f"{looked_at} has no card at the device's socket")
    # QEMU: the control queue and its companions are on unless it is said otherwise.
    lacking = [f"{one}=on" for one in _ON if not is_on(found, one)]
    lacking += [f"{one}=off" for one in _OFF if is_on(found, one, "on")]
    if is_on(found, "mq"):
        lacking.append("mq=off")
    if lacking:
        yield error(
            looked_at,
            f"its card is without {','.join(lacking)}",
            means="without iommu_platform no packet crosses; through a control queue "
            "the slave could have QEMU write anywhere in the master",
            repair=f"{','.join(lacking)} in its -device, as "
            f"{_arguments(device, line)} prints it",
        )
        return
    yield ok(looked_at, "its card uses the shared region, and has no control queue")


@each_confined
def devices(device: Json, looked_at: str, line: CommandLine) -> Iterator[Seen]:
    """Look whether another device, or its back-end, has the shared region."""
    own = card_of(device, line)
    backends = [one for one in _of_vhost_user(line) if one is not own]
    if backends:
        yield _shown_to_others(looked_at, backends)
    others = list(_others(line, [own, *backends]))
    if others:
        yield _wrong(looked_at, others)
    # What is plugged by a monitor is on no command line.
    if not backends and not others:
        yield ok(looked_at, "no other device there uses DMA by the kernel's interface")


def _shown_to_others(looked_at: str, backends: Sequence[Values]) -> Seen:
    return error(
        looked_at,
        f"beside its card the master has {', '.join(map(_driver, backends))}, "
        "whose back-end is another process (vhost-user)",
        means="QEMU shows the shared region to every such back-end, which "
        "can then read and change this card's packets",
        repair="take it from the VM; docs/confined.md has what holds for a second "
        "confined card",
    )


def _wrong(looked_at: str, others: list[str]) -> Seen:
    return error(
        looked_at,
        f"beside its card the master has {', '.join(others)}",
        means="such a device has its rings and data in the shared region: the "
        "slave could have it read and write all of the master's memory",
        repair="take it from the VM; allowed are virtio devices without "
        "iommu_platform, and root ports",
    )


def _of_vhost_user(line: CommandLine) -> Iterator[Values]:
    """Yield the devices whose back-end is another process."""
    netdevs = {
        one.get("id") for one in line.all("netdev") if one.get("type") == "vhost-user"
    }
    for one in line.all("device"):
        if _driver(one).startswith("vhost-user-") or one.get("netdev") in netdevs:
            yield one


def _driver(device: Values) -> str:
    return device.get("driver", "?")


def plugged(host: Hypervisor) -> Iterator[Seen]:
    """Look at the devices that a confined master has now, by its monitor."""
    return _plugged(_with_confined_alone(host))


@each_device
def _plugged(host: Hypervisor, device: Json) -> Iterator[Seen]:
    if host.plugged is None:
        raise CannotLook(
            "what was plugged later is on no command line: name the monitor of "
            f"{device['name']}'s master (--master-qmp), or see what "
            f"{master_check(device['name'], device['mode'])} prints for use in the "
            "master"
        )
    there = host.plugged()
    cards = [one for one in there if one.get(BACKEND) == VHOST_USER]
    # One of these is the card itself; confined-card looks at its properties.
    own = max(cards, key=lambda one: is_on(one, "iommu_platform"), default=None)
    backends = [one for one in cards if one is not own]
    others = [what for one in there if one not in cards and (what := _not_allowed(one))]
    if backends:
        yield _shown_to_others(_MONITOR, backends)
    if others:
        yield _wrong(_MONITOR, others)
    if not backends and not others:
        yield ok(_MONITOR, "no other device uses DMA, and none has the region")


def _others(line: CommandLine, known: Sequence[Values | None]) -> Iterator[str]:
    """Yield what is not on the list of what a confined master may have."""
    for one in line.all("device"):
        if one not in known and (what := _not_allowed(one)):
            yield what
    for values in line.all("global"):
        if values.get("property") == "iommu_platform" or any(
            key.endswith(".iommu_platform") for key in values
        ):
            yield "-global ...iommu_platform"
    for option in _SHORT:
        if any(line.all(option)):
            yield f"what -{option} adds"
    for screen in line.texts("vga"):
        if screen not in _SCREENS:
            yield f"what -vga {screen} adds"
    yield from _of_machine(_machine(line))


def _not_allowed(device: Values) -> str | None:
    """Return what a device is that a confined master may not have; None: it may."""
    driver = _driver(device)
    if driver in _VIOMMUS:
        return f"a vIOMMU ({driver})"
    if driver.startswith("vhost-user-"):
        return f"{driver}, whose back-end has the shared region"
    if driver.startswith("virtio-crypto"):
        # Its back-end is an object, cryptodev-vhost-user perhaps.
        return f"{driver}, whose back-end may be a process that has the shared region"
    if driver.startswith(("virtio-", "vhost-")):
        on = is_on(device, "iommu_platform")
        return f"{driver} with iommu_platform=on" if on else None
    harmless = driver in _NO_DMA or driver.endswith("-cpu")
    return None if harmless else driver


def _of_machine(machine: Values) -> Iterator[str]:
    """Yield what the machine itself has that a confined master may not have."""
    if machine.get("iommu", "none") != "none":
        yield "a vIOMMU (-machine iommu=)"
    if is_on(machine, "usb"):
        yield "USB (-machine usb=on)"
    # An aarch64's `virt` has no such controller.
    if not _is_virt(machine) and is_on(machine, "sata", "on"):
        yield "an AHCI controller (no sata=off in -machine)"


@each_confined
def memory(device: Json, looked_at: str, line: CommandLine) -> Iterator[Seen]:
    """Look whether the shared region alone is shared."""
    wanted, path = device["confined"]["shared"], device["memory"]["path"]
    backends = [
        one
        for one in line.all("object")
        if one.get("qom-type", "").startswith("memory-backend-")
    ]
    # QEMU shows a back-end each memory that has a descriptor, whether shared or not.
    files = [one for one in backends if not _is_private(one)]
    wrong = [
        f"{one.get('id', '?')} ({mib(size_of(one.get('size', '')) or 0)})"
        for one in files
        if size_of(one.get("size", "")) != wanted
        or not is_on(one, "share", "on" if _is_memfd(one) else "off")
        or (path is not None and one.get("mem-path") != path)
    ]
    if any(line.all("mem-path")):
        wrong.append("what -mem-path shares")
    if wrong or len(files) != 1:
        names = ", ".join(wrong) or f"{len(files)} memories with a file"
        yield error(
            looked_at,
            f"{names}, and the shared region is one of {mib(wanted)}",
            means="a shared piece of ordinary memory holds what the kernel and "
            "programs put there: a slave that writes it owns the master",
            repair="one shared memory, and memory-backend-ram without share=on for "
            f"all others, as {_arguments(device, line)} prints them",
        )
        return
    yield ok(looked_at, f"one shared memory of {mib(wanted)}, all others are private")


def _is_private(backend: Values) -> bool:
    kind = backend.get("qom-type")
    return kind == "memory-backend-ram" and not is_on(backend, "share")


def _is_memfd(backend: Values) -> bool:
    return backend.get("qom-type") == "memory-backend-memfd"


@each_confined
def words(device: Json, looked_at: str, line: CommandLine) -> Iterator[Seen]:
    """Look at the words of the master's kernel, if QEMU gives them."""
    *_, given = ["", *line.texts("append")]
    script = _script(device, line)
    if not given:
        raise CannotLook(f"the kernel's words are in the master: {script} there")
    missing = lacking(given, list(_wanted(device, line)))
    crash = [one for one in split(given) if key(one) == "crashkernel"]
    if missing:
        yield error(
            looked_at,
            f"-append lacks {' '.join(missing)}",
            means="rings and packets are not in the shared region, or what else the "
            "kernel and programs have gets there",
            repair="the kernel's words, in place of others that begin alike, of the "
            f"same {_arguments(device, line)} as the memory arguments",
        )
    if crash:
        yield error(
            looked_at,
            f"-append has {' '.join(crash)}",
            means="Linux puts the crash kernel where the bounce pool should be",
            repair="take it from there",
        )
    if not missing and not crash:
        means = f"{script} at the rest"
        yield ok(looked_at, "-append has the kernel's words", means=means)


def _wanted(device: Json, line: CommandLine) -> Iterator[str]:
    """Return the words for the memory that this QEMU has."""
    if len(device["master"]["regions"]) != 1:
        raise CannotLook("the master has not shown its shared region")
    (region,) = device["master"]["regions"]
    start, end = region["guest_addr"], region["guest_addr"] + region["size"]
    rings = start + device["confined"]["pool"]
    below = size_of(_machine(line).get("max-ram-below-4g", "")) or 0
    # A virt has none, and no other has it at its end of the memory below 4 GiB.
    boot = range(end, below) if end < below <= 4 << 30 else None
    return kernel_words(range(start, rings), range(rings, end), boot)


def _is_virt(machine: Values) -> bool:
    return machine.get("type", "").startswith("virt")


def _machine(line: CommandLine) -> Values:
    """Return the options of the machine, which may be in several places."""
    return {k: v for one in line.all("machine", "M") for k, v in one.items()}

# SPDX-License-Identifier: Apache-2.0
"""The commands that print what a VM needs.

`qemu-args` is for QEMU, `xml` for libvirt, and `master-check` for a confined master.
"""

import argparse
import json
import sys
from pathlib import Path
from typing import Any

from vhostpci_shared.errors import told
from vhostpci_shared.virtio import Feature

from ..config import options
from ..config.commands import master_arguments
from ..config.confined_layout import Machine
from ..config.device import DeviceConfig, Mode, parse_size
from ..errors import HostError, NoDaemon
from ..hotplug import shmem_xml
from ..interfaces import FAILED
from . import libvirt_xml, master_check, print_status, qemu_args, qemu_version
from .arguments import Usage, add_name, run_dir
from .manage import ask_status

_SLAVE = {option.name for option in options.SLAVE_VM}


def add_qemu_args(parser: argparse.ArgumentParser) -> None:
    _add_vm(parser)
    parser.add_argument("--json", action="store_true", help="print a JSON array")
    parser.add_argument(
        "--tcg",
        action="store_true",
        help="the VM runs without KVM: a master gets no MSI-X from a QEMU that crashes "
        "with it then (before 8.0), a slave gets one hint more",
    )
    _add_machine(parser)
    parser.add_argument(
        "--kernel-args",
        action="store_true",
        help="print the words that a confined master's kernel needs, and nothing else",
    )
    parser.set_defaults(run=_qemu_args)


def add_xml(parser: argparse.ArgumentParser) -> None:
    _add_vm(parser)
    parser.add_argument(
        "--type",
        choices=["kvm", "qemu"],
        default="kvm",
        help="the domain's type: qemu is for a machine without KVM "
        "(default: %(default)s)",
    )
    _add_machine(parser)
    parser.set_defaults(run=_xml)


def add_master_check(parser: argparse.ArgumentParser) -> None:
    _add_device(parser)
    _add_machine(parser)
    parser.set_defaults(run=_master_check, packed=False)


def _add_machine(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--machine",
        choices=[*Machine],
        default=Machine.Q35,
        type=Machine,
        help="a confined master's machine: virt is for aarch64, and is the one of "
        "qemu-system-aarch64 (default: %(default)s)",
    )


def _add_device(parser: argparse.ArgumentParser) -> None:
    """Add the arguments that say which device it is, running or described."""
    add_name(parser)
    options.add_to(parser, *options.WHAT, *options.SLAVE_VM, *options.PLACES)


def _add_vm(parser: argparse.ArgumentParser) -> None:
    """Add the arguments that describe a VM, to `qemu-args` and `xml` alike."""
    _add_device(parser)
    parser.add_argument(
        "--role",
        choices=["master", "slave"],
        required=True,
        help="which of the two VMs: the master has the card, the slave serves it",
    )
    parser.add_argument(
        "--windows",
        type=int,
        choices=range(1, 33),
        default=1,
        metavar="N",
        help="memory files that the master has in attach mode (default: %(default)s)",
    )
    parser.add_argument(
        "--vectors",
        type=int,
        metavar="N",
        help="MSI-X vectors of the master's card, instead of the usual number",
    )
    parser.add_argument(
        "--packed",
        action="store_true",
        help="a master's card with packed rings, which keep a ring's parts together",
    )
    parser.add_argument(
        "--qemu",
        metavar="PATH",
        help="the QEMU that runs the VM, which is asked for its version (default: "
        f"{qemu_version.PROGRAM} in PATH; if there is none, version "
        f"{qemu_version.ASSUMED} is assumed)",
    )


def _qemu_args(args: argparse.Namespace) -> None:
    # Only attach mode uses `ram`; in arena mode the size is in the configuration.
    ram = args.memory and parse_size(args.memory)
    device = _qemu_device(args)
    if args.kernel_args:
        if args.role != "master":
            raise Usage("--kernel-args: the slave's kernel needs no words", code="H149")
        print(qemu_args.confined_layout(device, ram, args.machine).kernel_words())
        return
    qemu = qemu_version.find(args.qemu, args.machine)
    if args.role == "master":
        vectors = _vectors(args, qemu.version, tcg=args.tcg)
        words = qemu_args.master(
            device,
            qemu.version,
            ram,
            vectors=vectors,
            packed=args.packed,
            machine=args.machine,
        )
    else:
        words = qemu_args.slave(device, ram, windows=args.windows)
    # On stderr, so that a shell's $(...) and a pipe get the arguments alone.
    print(f"# {qemu}", file=sys.stderr)
    if args.json:
        print(json.dumps(qemu_args.flat(words)))
        return
    print(qemu_args.text(words))
    hint = qemu_args.hint(device, args.role, qemu.version, tcg=args.tcg)
    print(hint, end="", file=sys.stderr)
    _print_confined_hint(args, device, ram)


def _print_confined_hint(
    args: argparse.Namespace, device: DeviceConfig, ram: int | None
) -> None:
    """Print what else a confined master needs, if this is one."""
    if args.role == "master" and device.confined is not None:
        its = qemu_args.confined_layout(device, ram, args.machine)
        print(qemu_args.confined_hint(its), end="", file=sys.stderr)


def _xml(args: argparse.Namespace) -> None:
    ram = args.memory and parse_size(args.memory)
    device = _qemu_device(args)
    confined_master = args.role == "master" and device.confined is not None
    if args.machine is not Machine.Q35 and not confined_master:
        raise Usage(
            f"--machine {args.machine}: xml has it for a confined master only: leave "
            "it out",
            code="H155",
        )
    qemu = qemu_version.find(args.qemu, args.machine)
    tcg = args.type == "qemu"
    if args.role == "master":
        vectors = _vectors(args, qemu.version, tcg=tcg)
        element = libvirt_xml.master(
            device,
            qemu.version,
            ram,
            kind=args.type,
            vectors=vectors,
            packed=args.packed,
            machine=args.machine,
        )
    else:
        element = libvirt_xml.slave(device, ram, kind=args.type, windows=args.windows)
    # libvirt chooses its own QEMU as long as the user names none.
    if args.qemu is not None and qemu.program is not None:
        libvirt_xml.set_emulator(element, qemu.program)
    print(f"# {qemu}", file=sys.stderr)
    print(shmem_xml.text(element))
    print(libvirt_xml.hint(device, args.role, tcg=tcg), file=sys.stderr)
    _print_confined_hint(args, device, ram)


def _master_check(args: argparse.Namespace) -> None:
    try:
        text = _script(args)
    except HostError:
        # By `> check.sh` there is a file already, which may be run all the same.
        if not sys.stdout.isatty():
            print(master_check.NONE, end="")
        raise
    print(text, end="")


def _script(args: argparse.Namespace) -> str:
    ram = args.memory and parse_size(args.memory)
    device = _qemu_device(args)
    its = qemu_args.confined_layout(device, ram, args.machine)
    arguments = master_arguments(device.name, device.mode)
    if its.machine is not Machine.Q35:
        arguments += f" --machine {its.machine}"
    mac = qemu_args.mac(device.name)
    return master_check.script(device.name, mac, its, arguments)


def _vectors(
    args: argparse.Namespace, version: qemu_version.Version, *, tcg: bool
) -> int | None:
    """Return the MSI-X vectors of a master's card; None for the usual number."""
    given: int | None = args.vectors
    if given is None and qemu_args.needs_intx(version, tcg=tcg):
        return 0
    return given


def _qemu_device(args: argparse.Namespace) -> DeviceConfig:
    """Return the device as a daemon serves it, with the options that the user gave.

    Raises:
        HostError: no daemon serves the device, and the options do not describe it.
    """
    given = options.texts(args)
    whole = "memory" in given or given.get("mode") == Mode.ATTACH
    running = _running_options(args, whole=whole)
    if _SLAVE & given.keys():
        # The two exclude each other: the one that the user gives replaces the other.
        running = {name: text for name, text in running.items() if name not in _SLAVE}
    merged = {**running, **given}
    if merged.get("mode") == Mode.ATTACH:
        # In attach mode --memory is the size of the master's own memory, for the
        # example that is printed.  The device has no such option, and would refuse it.
        for name in ("memory", "memory-dir"):
            merged.pop(name, None)
    device = options.device(args.name, merged)
    if args.packed and not qemu_args.offers(device, Feature.F_RING_PACKED):
        raise HostError(
            "--packed: the device's features are without F_RING_PACKED", code="H026"
        )
    if args.packed and device.confined is not None:
        # Linux has no more than a page for each of its areas, and takes single pages
        # from anywhere.
        raise HostError(
            "--packed: a confined master has packed rings outside of its ring area, "
            "where the daemon does not serve them: leave out --packed",
            code="H154",
        )
    return device


def _running_options(args: argparse.Namespace, *, whole: bool) -> dict[str, str]:
    """Return the options of the device that a daemon serves.

    Args:
        whole: whether the options on the command line describe the device without a
            daemon: then there are no others if no daemon serves it.

    Raises:
        HostError: no daemon serves the device, or the device failed.
    """
    try:
        running = ask_status(run_dir(args), args.name)
    except HostError as error:
        if not whole:
            raise HostError(f"{error}; or give --memory", code=error.code) from error
        # A daemon that is not there yet is usual.  Of any other reason the user must
        # know, since the device that runs may have other options than these.
        if not isinstance(error, NoDaemon):
            print(f"# by the options alone: {told(error)}", file=sys.stderr)
        return {}
    if running["state"] == FAILED:
        if not whole:
            raise HostError(f"{print_status.text(running)}; give --memory", code="H027")
        return {}
    return options_of(running)


def options_of(running: dict[str, Any]) -> dict[str, str]:
    """Return a running device's options, by its status."""
    found = {
        "mode": running["mode"],
        "queue-pairs": str(running["queue_pairs"]),
        # A daemon of an earlier version does not connect to front-ends.
        "connect" if running.get("connects") else "socket-path": running["sockets"][
            "vhost_user"
        ],
    }
    # The memory of attach mode is the master's: only metadata is the daemon's.
    if found["mode"] == Mode.ARENA:
        found["memory"] = f"{running['memory']['size'] >> 20}M"
        found["memory-dir"] = str(Path(running["memory"]["path"]).parent)
    # A daemon of an earlier version has no confined devices, and no such options.
    if confined := running.get("confined"):
        found["confined"] = str(confined["pool"])
        if confined["memory"]:
            found["memory"] = str(confined["memory"])
    features = running.get("features", {}).get("option")
    if features is not None:
        found["features"] = ",".join(features)
    slave = (running["plugging"] or {}).get("slave")
    if slave is not None:
        # A QMP socket is an absolute path; no libvirt domain has a "/" in its name.
        found["slave-qmp" if slave.startswith("/") else "slave-libvirt"] = slave
    return found

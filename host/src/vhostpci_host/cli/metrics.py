# SPDX-License-Identifier: Apache-2.0
"""The command `metrics`: the state of all devices for Prometheus.

It is a client of the daemons, as `status` is.  docs/metrics.md has the names.
"""

import argparse
import logging
from pathlib import Path

from vhostpci_shared import log_options, metrics_server
from vhostpci_shared.metrics import (
    COUNTER,
    ConfinedFamilies,
    Family,
    render,
    write_file,
)

from ..config import options
from ..errors import HostError, explain
from ..interfaces import FAILED, Json
from .arguments import Usage, run_dir
from .manage import status_of_all

_RUNNING = "running"

_OF_AGENT = {
    "packets": "Packets that the agent has moved.",
    "bytes": "Bytes of these packets, without the virtio-net header.",
    "drops": "Packets that did not get through.",
    "kicks": "Interrupts that came from the master.",
    "calls": "Interrupts that were sent to the master.",
}
_OF_DAEMON = {
    "kicks_relayed": "Kicks that the daemon has passed on.",
    "calls_relayed": "Calls that the daemon has passed on.",
}


def add_metrics(parser: argparse.ArgumentParser) -> None:
    options.add_to(parser, options.RUN_DIR)
    metrics_server.add_outputs(parser)
    parser.set_defaults(run=_metrics)


def _metrics(args: argparse.Namespace) -> None:
    directory = run_dir(args)
    if args.listen is not None:
        # What it says is the log of a server, in the form that the options ask for.
        _log(args)
        try:
            metrics_server.serve(args.listen, lambda: collect(directory)[0])
        except metrics_server.BadAddress as why:
            raise Usage(f"--listen {why}", code=why.code) from None
        except metrics_server.NotServed as why:
            raise HostError(str(why), code=why.code) from None
        return
    text, failed = collect(directory)
    if args.textfile is None:
        print(text, end="")
    else:
        try:
            write_file(args.textfile, text)
        except OSError as error:
            raise explain("write", args.textfile, error) from error
    if failed:
        raise HostError(
            f"the metrics of {failed} devices or daemons are missing", code="H011"
        )


def _log(args: argparse.Namespace) -> None:
    handler = logging.StreamHandler()
    handler.setFormatter(log_options.formatter_of(args, "vhostpci-host", dated=True))
    logging.basicConfig(level=log_options.level_of(args), handlers=[handler])


def collect(directory: Path) -> tuple[str, int]:
    """Return the metrics of all devices, and how many could not be asked.

    Raises:
        HostError: this user may not look into the directory.
    """
    found, failed = status_of_all(directory)
    return render([*_families(found), _failed(failed)]), failed


def _failed(count: int) -> Family:
    family = Family(
        "vhostpci_scrape_errors", "Daemons and devices that did not answer."
    )
    family.add(count)
    return family


def _families(found: list[Json]) -> list[Family]:
    up = Family("vhostpci_device_up", "1: packets can cross.")
    failed = Family("vhostpci_device_failed", "1: the daemon serves it no more.")
    info = Family("vhostpci_device_info", "Always 1; what the labels say.")
    parts = {
        "master": Family("vhostpci_device_master", "1: a front-end is connected."),
        "slave": Family("vhostpci_device_slave", "1: a slave is connected."),
        "agent": Family("vhostpci_device_agent", "1: an agent serves it."),
    }
    confined = ConfinedFamilies("vhostpci_device")
    rings = _RingFamilies()
    for status in found:
        name = status["name"]
        up.add(status["state"] == _RUNNING, device=name)
        failed.add(status["state"] == FAILED, device=name)
        # One that failed has only its name, mode and reason.
        if status["state"] == FAILED:
            continue
        version = str(status["daemon"]["version"])
        info.add(1, device=name, mode=status["mode"], version=version)
        parts["master"].add(status["master"] is not None, device=name)
        parts["slave"].add(status["slave"] is not None, device=name)
        parts["agent"].add(bool(status["agent"]["present"]), device=name)
        # A daemon of an earlier version has no confined devices.
        confined.add(status.get("confined"), device=name)
        for ring in status["rings"]:
            rings.add(name, ring)
    return [up, failed, info, *parts.values(), *confined.all(), *rings.all()]


class _RingFamilies:
    """The metrics of rings."""

    def __init__(self) -> None:
        self._running = Family("vhostpci_ring_running", "1: the agent may use it.")
        self._size = Family("vhostpci_ring_size", "Entries; 0 before the driver.")
        self._counts = {
            name: Family(f"vhostpci_ring_{name}", text, COUNTER)
            for name, text in (_OF_AGENT | _OF_DAEMON).items()
        }

    def add(self, device: str, ring: Json) -> None:
        labels = {"device": device, "ring": str(ring["index"]), "queue": ring["queue"]}
        self._running.add(ring["state"] == _RUNNING, **labels)
        self._size.add(ring["size"], **labels)
        said = ring["agent"]
        # None: the agent's entry makes no sense, so nothing is known.
        for name in _OF_AGENT if said is not None else ():
            self._counts[name].add(said[name], **labels)
        for name in _OF_DAEMON:
            self._counts[name].add(ring[name], **labels)

    def all(self) -> list[Family]:
        return [self._running, self._size, *self._counts.values()]

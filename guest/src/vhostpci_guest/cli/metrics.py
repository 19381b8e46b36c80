# SPDX-License-Identifier: Apache-2.0
"""The command `metrics`: the counters of all devices for Prometheus.

It is a client of the agents, as `stats` is, and has the same counters.
docs/metrics.md has the names.
"""

import argparse
import re
from typing import Any

from vhostpci_shared import metrics_server
from vhostpci_shared.metrics import (
    COUNTER,
    ConfinedFamilies,
    Family,
    render,
    write_file,
)

from .. import status_socket
from ..errors import Unusable
from .errors import UsageError
from .print_stats import statistics

_BATCHES = re.compile(r"([rt]x)_batches_(.*)")
_NOT_COUNTED = {"octets": "bytes", "drops": "drop"}
"""Names of the status, where another one is a part of the counters' names."""
_OF_TAP = "tx_tap_dropped"
"""A counter of a whole device."""


def add_metrics(parser: argparse.ArgumentParser) -> None:
    metrics_server.add_outputs(parser)
    parser.set_defaults(run=_metrics)


def _metrics(arguments: argparse.Namespace) -> None:
    if arguments.listen is not None:
        try:
            metrics_server.serve(arguments.listen, lambda: collect()[0])
        except metrics_server.BadAddress as why:
            raise UsageError(f"--listen {why}", code=why.code) from None
        except metrics_server.NotServed as why:
            raise Unusable(str(why), code=why.code) from None
        return
    text, problems = collect()
    if arguments.textfile is None:
        print(text, end="")
    else:
        try:
            write_file(arguments.textfile, text)
        except OSError as error:
            raise Unusable(
                f"cannot write {arguments.textfile}: {error.strerror}", code="G011"
            ) from None
    if problems:
        raise status_socket.missing(problems)


def collect() -> tuple[str, list[str]]:
    """Return the metrics of all devices, and why some are missing.

    Raises:
        Unusable: this user may not ask the agents, or one is of an earlier version.
    """
    links, problems = status_socket.ask()
    up = Family("vhostpci_agent_up", "1: an agent serves the device.")
    carrier = Family("vhostpci_agent_carrier", "1: the TAP has its carrier.")
    errors = Family("vhostpci_agent_scrape_errors", "Agents that did not answer.")
    errors.add(len(problems))
    confined = ConfinedFamilies("vhostpci_agent")
    counters = _Counters()
    for link in links:
        labels = {"device": link["name"] or "", "tap": link["tap"] or ""}
        up.add(int(link["state"] == "ready"), **labels)
        carrier.add(int(bool(link["carrier"])), **labels)
        # An agent of an earlier version does not say it.
        confined.add(link.get("confined"), **labels)
        counters.add(statistics(link), labels)
    families = [up, carrier, *confined.all(), *counters.all(), errors]
    return render(families), problems


def _lacks(counted: dict[str, Any], name: str) -> bool:
    """Whether a device or a queue pair does not count this.

    A zero that is no count would look like one.
    """
    words = (_NOT_COUNTED.get(one, one) for one in counted["not_counted"])
    return any(word in name for word in words)


class _Counters:
    """The counters of `stats`: each queue pair with a label, or of the whole device."""

    def __init__(self) -> None:
        self._families: dict[str, Family] = {}

    def add(self, device: dict[str, Any], labels: dict[str, str]) -> None:
        totals = {_OF_TAP}
        for pair in device["queue_pairs"]:
            own = {**labels, "pair": str(pair["pair"])}
            for name, value in pair["statistics"].items():
                if not _lacks(pair, name):
                    self._add(name, value, own)
                elif not _lacks(device, name):
                    totals.add(name)
        for name in sorted(totals):
            self._add(name, device["statistics"][name], labels)

    def _add(self, name: str, value: int, labels: dict[str, str]) -> None:
        if batch := _BATCHES.fullmatch(name):
            name, labels = f"{batch[1]}_batches", {**labels, "chains": batch[2]}
        if name not in self._families:
            text = f"The counter {name} of vhostpci-guest stats."
            self._families[name] = Family(f"vhostpci_agent_{name}", text, COUNTER)
        self._families[name].add(value, **labels)

    def all(self) -> list[Family]:
        return [self._families[name] for name in sorted(self._families)]

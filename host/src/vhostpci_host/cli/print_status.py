# SPDX-License-Identifier: Apache-2.0
"""Make the text that `status` and `list` print for people.

A daemon of an earlier version sends fewer keys: what it does not say is left out.
"""

import time
from collections.abc import Iterator

from vhostpci_shared.terminal import Styled, Terminal
from vhostpci_shared.units import confined, duration, short, si, size

from ..interfaces import FAILED, Json

Field = tuple[str, str]
"""A label and its text."""
_COLUMN = 9
"""Where the texts of all devices begin, behind the longest label."""
_MAKES_DATAGRAMS = (
    "makes datagrams of UDP segments: a slave with Linux 6.2 or later takes them whole"
)
_GOOD = "running"
_IDLE = ("no master", "no slave", "no agent", "master's driver is not loaded")
"""States in which nothing is wrong, and a peer has yet to come."""


def text(status: Json, terminal: Terminal | None = None) -> str:
    """Return the status of one device as lines of text."""
    terminal = terminal or Terminal()
    name, found = status["name"], status["state"]
    # A device that failed has only its name, mode and reason.
    if found == FAILED:
        lines = terminal.wrapped(Styled(f"{name}: failed: {status['reason']}", "bad"))
        return "\n".join(lines)
    lines = [_head(status, terminal)]
    lines += terminal.fields(_fields(status), column=_COLUMN)
    lines += terminal.table(_rings(status), _RING_HEADER, indent=2, right=range(2, 10))
    lines += terminal.fields(_ring_notes(status), column=_COLUMN)
    return "\n".join(lines)


def _head(status: Json, terminal: Terminal) -> str:
    since, found = status.get("state_since"), status["state"]
    for_long = "" if since is None else f" for {duration(time.time() - since)}"
    name = terminal.paint(Styled(status["name"], "name"))
    return f"{name}: {terminal.paint(_state(found))}{for_long}"


def _state(found: str) -> str:
    """Return a state in its colour."""
    if found == _GOOD:
        return Styled(found, "good")
    return Styled(found, "warn" if found.startswith(_IDLE) else "bad")


def table(rows: list[Json], terminal: Terminal | None = None) -> str:
    """Return a table with a line for each device."""
    lines = []
    for one in rows:
        # Nothing is shortened: the reason of a failure is what the user has to read.
        found = one["state"] + (f": {one['reason']}" if one["reason"] else "")
        state = Styled(found, "bad") if one["reason"] else _state(found)
        ends = (_who(one.get(f"{end}_pid"), one.get(f"{end}_name")) for end in _ENDS)
        mode = one["mode"] + (" (confined)" if one.get("confined") else "")
        lines.append((Styled(one["name"], "name"), mode, state, *ends))
    header = ("NAME", "MODE", "STATE", "MASTER", "SLAVE")
    return "\n".join((terminal or Terminal()).table(lines, header))


_ENDS = ("master", "slave")


def _who(pid: int | None, name: str | None) -> str:
    """Return a process, by its VM's name if that is known."""
    if not pid:
        return "-"
    return f"{name} ({pid})" if name else str(pid)


def _fields(status: Json) -> Iterator[Field]:
    """Yield all that is known of a device but its rings."""
    yield from _device(status)
    yield from _master(status)
    yield from _traffic(status)
    yield from _slave(status)
    yield from _agent(status)
    yield from _plugging(status["plugging"])
    yield from _memory(status["memory"])
    for window in status["windows"]:
        yield "window", _window(window)
    yield from _details(status)
    yield from _daemon(status)


def _problem(what: str) -> Field:
    return Styled("problem", "bad"), what


def _device(status: Json) -> Iterator[Field]:
    pairs = status["queue_pairs"]
    of_size = ""
    if status["memory"]["path"] is not None:
        of_size = f" of {size(status['memory']['size'])}"
    text = f"{status['mode']}{of_size}, {pairs} queue pair{'s' * (pairs != 1)}"
    yield "device", text
    # A daemon of an earlier version has no confined devices.
    if status.get("confined"):
        yield "confined", confined(status["confined"])


def _master(status: Json) -> Iterator[Field]:
    master = status["master"]
    if not master:
        yield "master", Styled("not connected", "dim")
        # A daemon of an earlier version does not connect to front-ends.
        if status.get("connect_problem"):
            yield _problem(status["connect_problem"])
    else:
        words = [_process(master), master.get("mac")]
        words.append(f"MTU {master['mtu']}" if master.get("mtu") else None)
        yield "master", ", ".join(filter(None, words))
        # A master with more RAM than the device is a problem of the file as well.
        if master["problem"] not in (None, status["memory"]["problem"]):
            yield _problem(master["problem"])
    yield from _carrier(status.get("carrier"))
    features = status.get("features") or {}
    if features.get("mismatch"):
        yield _problem(features["mismatch"])


def _process(peer: Json) -> str:
    """Return a process with what the command line has found out of it."""
    name, started = peer.get("name"), peer.get("started")
    text = f"{name} (pid {peer['pid']})" if name else f"pid {peer['pid']}"
    return text if started is None else f"{text}, up {duration(time.time() - started)}"


def _traffic(status: Json) -> Iterator[Field]:
    """Yield the rates; without a master or an agent they are of no interest."""
    rates = status.get("rates")
    if not rates or not status["master"] or not status["agent"]["present"]:
        return
    unknown = status["agent"].get("not_counted", ())
    for label, way in (("sends", "tx"), ("receives", "rx")):
        words = []
        if "bytes" not in unknown:
            words.append(si(rates[f"{way}_bits"], "bit/s"))
        if "packets" not in unknown:
            words.append(si(rates[f"{way}_packets"], "pps"))
        if words:
            yield label, Styled(", ".join(words), "link")


def _slave(status: Json) -> Iterator[Field]:
    slave = status["slave"]
    yield "slave", _process(slave) if slave else Styled("not connected", "dim")
    if status["slave_problem"]:
        yield _problem(status["slave_problem"])


def _agent(status: Json) -> Iterator[Field]:
    master, agent = status["master"], status["agent"]
    # The entry of an agent that is gone keeps its last state, such as "ready".  Only
    # `present`, which follows the heartbeat, says whether that is still true.
    state = agent["state"] if agent["present"] else "not present"
    words = [state, agent["binding"]]
    words.append(agent.get("data_plane", ""))  # a daemon of an earlier version
    words.append(agent["message"])
    found = [" ".join(filter(None, words))]
    if agent["present"]:
        found += _about_agent(agent)
    yield "agent", ", ".join(found)
    if agent["present"] and master and _segments_udp(master, agent):
        yield "agent", _MAKES_DATAGRAMS


def _about_agent(agent: Json) -> Iterator[str]:
    """Yield what an agent tells people of itself; an earlier one tells nothing."""
    if agent.get("interrupts") is not None:
        yield "interrupts" if agent["interrupts"] else "polling"
    if agent.get("slow_window"):
        yield "uncached window"
    if agent.get("port"):
        yield f"port {agent['port']}"
    if agent.get("version"):
        yield f"version {agent['version']}"


def _segments_udp(master: Json, agent: Json) -> bool:
    """Whether the master may send what the slave's TAP does not know."""
    # Not before the agent is ready: it may not have seen its TAP.  A daemon of an
    # earlier version has no flags.
    sends = "NET_F_HOST_USO" in master["features"]
    return (
        sends and agent["state"] == "ready" and "USO" not in agent.get("flags", ["USO"])
    )


def _carrier(carrier: Json | None) -> Iterator[Field]:
    """Yield what is unusual of the master's carrier; an earlier daemon says none."""
    if not carrier:
        return
    if carrier["off"]:
        pid, lacking = carrier["waits_for"], ", ".join(carrier.get("lacking", ()))
        if refused := carrier.get("refused"):
            yield "carrier", f"off until pid {pid} ends"
            yield _problem(refused)
            return
        what = f"an agent serves {lacking}" if lacking else "an agent serves"
        yield "carrier", f"off until {what}{f' (pid {pid})' if pid else ''}"
    elif carrier["problem"]:
        yield _problem(carrier["problem"])


def _plugging(plugging: Json | None) -> Iterator[Field]:
    """Yield which windows are plugged into the slave VM, and the present problem."""
    if plugging is None:
        return
    there, wanted = (
        ", ".join(map(str, plugging[key])) or "none" for key in ("plugged", "wanted")
    )
    yield "plugged", f"{there} (wanted: {wanted}) in {plugging['slave']}"
    if plugging["problem"]:
        yield _problem(plugging["problem"])


def _memory(memory: Json) -> Iterator[Field]:
    # In attach mode only the metadata is ours, and it is a memfd without a path.
    if memory["path"] is None:
        yield "memory", "the master's own (attach mode)"
        return
    yield (
        "memory",
        f"{memory['path']} ({memory['filesystem']}, window {size(memory['window'])})",
    )
    if memory["problem"]:
        yield _problem(memory["problem"])


def _window(window: Json) -> str:
    connected = "connected" if window["connected"] else "not connected"
    where = f"{size(window['size'])} at {window['socket']}"
    return f"{window['window']}: {where}, {connected}"


def _details(status: Json) -> Iterator[Field]:
    """Yield what is of interest when something does not work."""
    master = status["master"]
    withheld = (status.get("features") or {}).get("withheld")
    if withheld:
        yield "withheld", " ".join(withheld)
    if not master:
        return
    # A front-end connects first and negotiates then: for a moment, or for as long as it
    # hangs, there are no features.
    for label, key in (("features", "features"), ("protocol", "protocol_features")):
        yield label, Styled(" ".join(master[key]) or "none yet", "dim")
    for region in master["regions"]:
        yield "region", Styled(_region(region), "dim")


def _region(region: Json) -> str:
    # Both addresses belong to the region, as in /proc/iomem.
    first, last = region["guest_addr"], region["guest_addr"] + region["size"] - 1
    where = f"{region['offset']:#x} of window {region['window']}"
    return f"{first:#x}-{last:#x} at {where}"


def _daemon(status: Json) -> Iterator[Field]:
    """Yield what there is to say of the daemon, of its keeper and of its filter."""
    daemon = status.get("daemon")
    if daemon:
        yield (
            "daemon",
            Styled(f"pid {daemon['pid']}, version {daemon['version']}", "dim"),
        )
    keeper = status.get("keeper")
    if keeper and keeper["problem"]:
        yield _problem(keeper["problem"])
    # A daemon of an earlier version has no filter.
    seccomp = status.get("seccomp")
    if seccomp and seccomp["problem"]:
        yield _problem(seccomp["problem"])
    elif seccomp:
        yield "seccomp", Styled(seccomp["mode"], "dim")


_RING_HEADER = (
    *("RING", "STATE", "SIZE", "INDEX", "FILL"),
    *("PACKETS", "BYTES", "DROPPED", "KICKS", "CALLS"),
)
_COUNTS = ("packets", "bytes", "drops", "kicks", "calls")


def _rings(status: Json) -> Iterator[list[str]]:
    """Yield a row for each ring."""
    unknown = status["agent"].get("not_counted", ())
    for ring in status["rings"]:
        # None if the agent's entry of the ring is nonsense: the slave can write
        # anything.
        agent = ring["agent"] or {}
        fill = ring.get("fill")
        state = ring["state"]
        yield [
            ring["queue"],
            Styled(state, "good" if state == _GOOD else "dim"),
            *(str(ring["size"]), str(ring["used_index"])),
            "-" if fill is None else str(fill),
            *(_count(agent.get(one), known=one not in unknown) for one in _COUNTS),
        ]


def _count(number: int | None, *, known: bool) -> str:
    return short(number) if known and number is not None else "-"


def _ring_notes(status: Json) -> Iterator[Field]:
    """Yield what is unusual of a ring."""
    for ring in status["rings"]:
        notes = [] if ring["enabled"] or not ring["size"] else ["disabled"]
        if ring.get("format") == "packed":
            notes.append("packed")
        # A daemon of an earlier version counts no calls.
        for name in ("kicks", "calls"):
            if relayed := ring.get(f"{name}_relayed", 0):
                notes.append(f"{relayed} {name} relayed")
        if stopped := _not_served(ring):
            notes.append(f"{stopped} in the slave")
        if ring["problem"]:
            notes.append(ring["problem"])
        if notes:
            yield ring["queue"], ", ".join(notes)


def _not_served(ring: Json) -> str:
    """Return what the agent says of a ring that it should serve, and does not."""
    agent = ring["agent"]
    # What it said of an earlier session, or has not said yet, means nothing.
    if ring["state"] != "running" or not agent or not agent["current"]:
        return ""
    state: str = agent["state"]
    return "" if state in ("idle", "running") else state

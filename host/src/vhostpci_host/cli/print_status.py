# SPDX-License-Identifier: Apache-2.0
"""Make the text that `status` and `list` print for people."""

from ..interfaces import FAILED, Json

_MAKES_DATAGRAMS = (
    "makes datagrams of UDP segments: a slave with Linux 6.2 or later takes them whole"
)


def text(status: Json) -> str:
    """Return the status of one device as lines of text."""
    # A device that failed has only its name, mode and reason.
    if status["state"] == FAILED:
        return f"{status['name']}: failed: {status['reason']}"
    lines = [f"{status['name']}: {status['state']}", *_memory_lines(status["memory"])]
    lines += [_window_line(window) for window in status["windows"]]
    lines += _connection_lines(status)
    lines += _plugging_lines(status["plugging"])
    lines += [_ring_line(ring) for ring in status["rings"]]
    return "\n".join(lines)


def table(rows: list[Json]) -> str:
    """Return a table with a line for each device."""
    lines = [("NAME", "MODE", "STATE", "MASTER", "SLAVE")]
    for one in rows:
        state = one["state"] + (f": {one['reason']}" if one["reason"] else "")
        pids = (str(one[key] or "-") for key in ("master_pid", "slave_pid"))
        lines.append((one["name"], one["mode"], state, *pids))
    # Nothing is shortened: the reason of a failure is what the user has to read.
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    return "\n".join("  ".join(map(str.ljust, line, widths)).rstrip() for line in lines)


def _memory_lines(memory: Json) -> list[str]:
    # In attach mode only the metadata is ours, and it is a memfd without a path.
    if memory["path"] is None:
        return ["  memory   the master's own (attach mode)"]
    lines = [
        f"  memory   {memory['size'] >> 20} MiB in {memory['path']} "
        f"({memory['filesystem']}, window {memory['window'] >> 20} MiB)"
    ]
    if memory["problem"]:
        lines.append(f"  problem  {memory['problem']}")
    return lines


def _window_line(window: Json) -> str:
    connected = "connected" if window["connected"] else "not connected"
    return (
        f"  window   {window['window']}: {window['size'] >> 20} MiB at "
        f"{window['socket']}, {connected}"
    )


def _connection_lines(status: Json) -> list[str]:
    slave = status["slave"]
    return [
        *_master_lines(status),
        *_feature_lines(status.get("features")),
        *_carrier_lines(status.get("carrier")),
        f"  slave    {'pid ' + str(slave['pid']) if slave else 'not connected'}",
        *_daemon_lines(status),
        *_agent_lines(status),
    ]


def _master_lines(status: Json) -> list[str]:
    master = status["master"]
    lines = [f"  master   {'pid ' + str(master['pid']) if master else 'not connected'}"]
    # A front-end connects first and negotiates then: for a moment, or for as long as it
    # hangs, there are no features.
    if master:
        lines.append(f"  features {' '.join(master['features']) or 'none yet'}")
        lines.append(
            f"  protocol {' '.join(master['protocol_features']) or 'none yet'}"
        )
        lines += [_region_line(region) for region in master["regions"]]
        # A master with more RAM than the device is a problem of the file as well.
        if master["problem"] not in (None, status["memory"]["problem"]):
            lines.append(f"  problem  {master['problem']}")
    # A daemon of an earlier version does not connect to front-ends.
    elif status.get("connect_problem"):
        lines.append(f"  problem  {status['connect_problem']}")
    return lines


def _daemon_lines(status: Json) -> list[str]:
    """What there is to say of the daemon's keeper and of its filter."""
    lines = []
    keeper = status.get("keeper")
    if keeper and keeper["problem"]:
        lines.append(f"  problem  {keeper['problem']}")
    # A daemon of an earlier version has no filter.
    seccomp = status.get("seccomp")
    if seccomp and seccomp["problem"]:
        lines.append(f"  problem  {seccomp['problem']}")
    elif seccomp:
        lines.append(f"  seccomp  {seccomp['mode']}")
    return lines


def _agent_lines(status: Json) -> list[str]:
    master, agent, lines = status["master"], status["agent"], []
    if status["slave_problem"]:
        lines.append(f"  problem  {status['slave_problem']}")
    # The entry of an agent that is gone keeps its last state, such as "ready".  Only
    # `present`, which follows the heartbeat, says whether that is still true.
    words = [agent["state"] if agent["present"] else "not present", agent["binding"]]
    words.append(agent.get("data_plane", ""))  # a daemon of an earlier version
    lines.append(f"  agent    {' '.join(filter(None, [*words, agent['message']]))}")
    if agent["present"] and master and _segments_udp(master, agent):
        lines.append(f"  agent    {_MAKES_DATAGRAMS}")
    return lines


def _feature_lines(features: Json | None) -> list[str]:
    """Return what a master is not offered, or lacks; an earlier daemon offers all."""
    if not features:
        return []
    withheld, mismatch = " ".join(features["withheld"]), features["mismatch"]
    lines = [f"  withheld {withheld}"] if withheld else []
    return [*lines, f"  problem  {mismatch}"] if mismatch else lines


def _carrier_lines(carrier: Json | None) -> list[str]:
    """Return what is unusual of the master's carrier; an earlier daemon says none."""
    if not carrier:
        return []
    if carrier["off"]:
        pid, lacking = carrier["waits_for"], ", ".join(carrier.get("lacking", ()))
        what = f"an agent serves {lacking}" if lacking else "an agent serves"
        return [f"  carrier  off until {what}{f' (pid {pid})' if pid else ''}"]
    return [f"  problem  {carrier['problem']}"] if carrier["problem"] else []


def _segments_udp(master: Json, agent: Json) -> bool:
    """Whether the master may send what the slave's TAP does not know."""
    # Not before the agent is ready: it may not have seen its TAP.  A daemon of an
    # earlier version has no flags.
    sends = "NET_F_HOST_USO" in master["features"]
    return (
        sends and agent["state"] == "ready" and "USO" not in agent.get("flags", ["USO"])
    )


def _plugging_lines(plugging: Json | None) -> list[str]:
    """Return which windows are plugged into the slave VM, and the present problem."""
    if plugging is None:
        return []
    there, wanted = (
        ", ".join(map(str, plugging[key])) or "none" for key in ("plugged", "wanted")
    )
    lines = [f"  plugged  {there} (wanted: {wanted}) in {plugging['slave']}"]
    if plugging["problem"]:
        lines.append(f"  problem  {plugging['problem']}")
    return lines


def _region_line(region: Json) -> str:
    # Both addresses belong to the region, as in /proc/iomem.
    first, last = region["guest_addr"], region["guest_addr"] + region["size"] - 1
    where = f"{region['offset']:#x} of window {region['window']}"
    return f"  region   {first:#x}-{last:#x} at {where}"


def _ring_line(ring: Json) -> str:
    # None if the agent's entry of the ring is nonsense: the slave can write anything.
    agent = ring["agent"] or {}
    return (
        f"  {ring['queue']:8} {ring['state']:8} "
        f"{'enabled' if ring['enabled'] else 'disabled'}, size {ring['size']}, "
        f"index {ring['used_index']}, {_relayed(ring)}"
        f"{agent.get('packets', 0)} packets, "
        f"{agent.get('drops', 0)} dropped{_not_served(ring)} {ring['problem']}"
    ).rstrip()


def _relayed(ring: Json) -> str:
    """Return how often the daemon has passed on a signal of the ring."""
    # A daemon of an earlier version counts no calls.
    counts = {"kicks": ring["kicks_relayed"], "calls": ring.get("calls_relayed", 0)}
    return "".join(
        f"{count} {name} relayed, " for name, count in counts.items() if count
    )


def _not_served(ring: Json) -> str:
    """Return what the agent says of a ring that it should serve, and does not."""
    agent = ring["agent"]
    # What it said of an earlier session, or has not said yet, means nothing.
    if ring["state"] != "running" or not agent or not agent["current"]:
        return ""
    state = agent["state"]
    return "" if state in ("idle", "running") else f", {state} in the slave"

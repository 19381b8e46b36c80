# SPDX-License-Identifier: Apache-2.0
"""Messages as text: by name, with what they carry.

What a front-end sent may be anything.  It is decoded by the same parsers as when it is
served; bytes that these refuse are counted, and never shown.
"""

from collections.abc import Callable, Mapping
from dataclasses import fields, is_dataclass
from enum import IntFlag

from vhostpci_shared import vhost_user as vu
from vhostpci_shared.vhost_user import HeaderFlag, ProtocolFeature, Request
from vhostpci_shared.virtio import Feature, names
from vhostpci_shared.wire import ProtocolError

from ..interfaces import Json

Parse = Callable[[bytes], object]

_ANSWERS: Mapping[int, Parse] = {
    Request.GET_VRING_BASE: vu.VringState.parse,
}
"""Replies that are not a number of 64 bits."""
_FEATURES: Mapping[int, type[IntFlag]] = {
    Request.GET_FEATURES: Feature,
    Request.SET_FEATURES: Feature,
    Request.GET_PROTOCOL_FEATURES: ProtocolFeature,
    Request.SET_PROTOCOL_FEATURES: ProtocolFeature,
}
_DECIMAL = frozenset({"index", "num", "nofd"})
"""Fields that are no addresses."""


def describe(entry: Json) -> Json:
    """Return an entry of a conversation with its message decoded."""
    if "event" in entry:
        return entry
    header = vu.Header(entry["request"], entry["flags"], entry["size"])
    found = {name: entry[name] for name in ("number", "time", "from")}
    flags = HeaderFlag(header.flags & ~3)
    return {
        **found,
        "message": header.name,
        "reply": bool(flags & HeaderFlag.REPLY),
        "need_reply": header.need_reply,
        "size": header.size,
        "fds": entry["fds"],
        "payload": _payload(header, bytes.fromhex(entry["payload"])),
    }


def text(entry: Json) -> str:
    """Return an entry of a conversation as one line, without its time."""
    if "event" in entry:
        return f"-- {entry['event']}"
    found = describe(entry)
    words = ["->" if found["from"] == "front-end" else "<-", found["message"]]
    if found["reply"]:
        words.append("reply")
    words += [f"{name}={value}" for name, value in _flat(found["payload"])]
    if found["fds"]:
        words.append(f"+ {found['fds']} descriptor{'s' * (found['fds'] > 1)}")
    if found["need_reply"]:
        words.append("(wants a reply)")
    return " ".join(words)


def _flat(payload: Json) -> list[tuple[str, object]]:
    """Return the names and values of a payload; those of each region, in a table."""
    found: list[tuple[str, object]] = []
    for name, value in payload.items():
        if name == "regions":
            for number, region in enumerate(value):
                inner = ", ".join(f"{k}={v}" for k, v in region.items())
                found.append((f"region{number}", f"({inner})"))
        else:
            shown = " ".join(value) or "none" if isinstance(value, list) else value
            found.append((name, shown))
    return found


def _payload(header: vu.Header, data: bytes) -> Json:
    if len(data) < header.size:
        return {"problem": f"{header.size} bytes, which are too many to be kept"}
    try:
        parse = _parser(header, len(data))
        return _shown(header.request, parse(data)) if parse else {}
    except ProtocolError:
        return {"problem": f"{len(data)} bytes that do not fit the request"}


def _parser(header: vu.Header, size: int) -> Parse | None:
    """Return what reads a payload; None if there is nothing to read."""
    if header.flags & HeaderFlag.REPLY:
        return _ANSWERS.get(header.request, vu.U64.parse)
    shape = next((s for r, s in vu.SHAPES.items() if r == header.request), None)
    if shape is None:
        return _refuse if size else None
    return shape.payload.parse


def _refuse(_data: bytes) -> object:
    raise ProtocolError("a request that we do not serve", code="P052")


def _shown(request: int, payload: object) -> Json:
    """Return the fields of a payload."""
    if isinstance(payload, vu.U64):
        if flags := _FEATURES.get(request):
            return {"features": names(flags(payload.value))}
        return {"value": payload.value}
    if isinstance(payload, vu.MemTable):
        return {"regions": [_fields(region) for region in payload.regions]}
    if isinstance(payload, vu.SingleRegion):
        return _fields(payload.region)
    return _fields(payload)


def _fields(payload: object) -> Json:
    assert is_dataclass(payload), "a payload of vhost-user"
    values = ((one.name, getattr(payload, one.name)) for one in fields(payload))
    return {name: value if name in _DECIMAL else hex(value) for name, value in values}

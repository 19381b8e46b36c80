# SPDX-License-Identifier: Apache-2.0
"""Dataclasses as JSON, and back: what is read is checked against their annotations.

For fields of the types int (from 0 to 2^64 - 1), str, bool, another such dataclass, a
tuple of one type, and any of these or None.
"""

import dataclasses
import json
import types
import typing
from collections.abc import Mapping
from typing import TypeVar

from .slots import StateError

_T = TypeVar("_T")
_SIMPLE = (int, str, bool)
MOST_TEXTS = 4096
"""Texts that are kept, so that what has not changed is not encoded again."""
_texts: dict[object, str] = {}


def encode(value: object) -> bytes:
    """Return the JSON text of a dataclass."""
    return _text(value).encode()


def _text(value: object) -> str:
    if value is None or isinstance(value, _SIMPLE):
        return json.dumps(value)
    if isinstance(value, tuple):
        return f"[{','.join(map(_text, value))}]"
    return _flat_text(value) if _is_flat(type(value)) else _object_text(value)


def _object_text(value: object) -> str:
    # Not dataclasses.asdict(), which copies every value: this is done for each message.
    fields = (f'"{one}":{_text(getattr(value, one))}' for one in _fields(type(value)))
    return f"{{{','.join(fields)}}}"


def _flat_text(value: object) -> str:
    """Return the text of a dataclass that has no tuples, or that of an equal one.

    A message changes one ring of a device, which may have 64 of them.
    """
    found = _texts.get(value)
    if found is None:
        if len(_texts) >= MOST_TEXTS:
            _texts.clear()
        found = _texts[value] = _object_text(value)
    return found


_flat: dict[type, bool] = {}


def _is_flat(kind: type) -> bool:
    """Whether a dataclass, with those in it, has no tuple, whose hash costs as much."""
    if kind not in _flat:
        hints = _fields(kind).values()
        kinds = {one for hint in hints for one in (hint, *typing.get_args(hint))}
        inner = [one for one in kinds if dataclasses.is_dataclass(one)]
        _flat[kind] = not any(typing.get_origin(one) is tuple for one in kinds) and all(
            _is_flat(one) for one in inner if isinstance(one, type)
        )
    return _flat[kind]


def decode(kind: type[_T], text: bytes) -> _T:
    """Return the dataclass `kind` of a JSON text.

    Raises:
        StateError: it is no JSON, or a value is missing, unknown or of another type.
    """
    try:
        plain: object = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise StateError(f"no JSON: {error}") from error
    found = _build(kind, plain, kind.__name__)
    assert isinstance(found, kind)
    return found


_hints: dict[type, Mapping[str, object]] = {}


def _fields(kind: type) -> Mapping[str, object]:
    """Return the types of a dataclass's fields by name."""
    if kind not in _hints:
        if not dataclasses.is_dataclass(kind):
            raise TypeError(f"{kind} is no dataclass")
        _hints[kind] = typing.get_type_hints(kind)
    return _hints[kind]


def _build(kind: object, plain: object, where: str) -> object:
    origin, arguments = typing.get_origin(kind), typing.get_args(kind)
    if origin is types.UnionType:
        if plain is None:
            return None
        kind = next(one for one in arguments if one is not types.NoneType)
        return _build(kind, plain, where)
    if origin is tuple:
        if not isinstance(plain, list):
            raise StateError(f"{where}: {plain!r} is no list")
        return tuple(_build(arguments[0], one, f"{where}[]") for one in plain)
    if kind in _SIMPLE:
        # Not isinstance(): True is an int to it.
        if type(plain) is not kind:
            raise StateError(f"{where}: {plain!r} is no {kind}")
        if type(plain) is int and not 0 <= plain < 2**64:
            raise StateError(f"{where}: {plain} does not fit in 64 bits")
        return plain
    assert isinstance(kind, type)
    return _build_dataclass(kind, plain, where)


def _build_dataclass(kind: type, plain: object, where: str) -> object:
    hints = _fields(kind)
    if not isinstance(plain, dict) or plain.keys() != hints.keys():
        raise StateError(f"{where}: {plain!r} has not the fields {', '.join(hints)}")
    values = {
        name: _build(hint, plain[name], f"{where}.{name}")
        for name, hint in hints.items()
    }
    return kind(**values)

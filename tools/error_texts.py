# SPDX-License-Identifier: Apache-2.0
"""The text of an error as a reader of the sources sees it: with names in braces."""

import ast
from collections.abc import Iterable

_UNKNOWN = "…"
_BETTER = {
    "describe": "region",
    "error": "reason",
    "exception": "reason",
    "getpid": "pid",
    "geteuid": "uid",
    "st gid": "gid",
    "st uid": "uid",
    "st nlink": "links",
    "strerror": "reason",
    "unknown": "hint",
    "users": "pids",
    "why": "reason",
}
_PLAIN_CALLS = (
    *("S_IMODE", "_list", "_round_up", "fsdecode", "free_text", "hex", "len", "list"),
    *("quoted", "repr", "shown", "size_text", "str", "strerror", "type"),
)
"""Functions whose result a reader calls as their argument."""

IN_WORDS = {
    "G010": "{reason} (what the kernel says)",
    "G014": "no ring {ring}; there are {rings}, from 0 on",
    "G070": "{reason} (why this binding cannot work with the function)",
    "G073": "{reason} (why the module uio_vhostpci cannot be loaded)",
    "G089": "{reason} (why the module uio_pci_generic cannot be loaded)",
    "G091": "{reason} (why the module vfio-pci cannot be loaded)",
    "G118": "{name} is no bridge but {kind}: choose another --bridge",
    "G151": "{path}: {reason} (what the kernel says)",
    "H063": "cannot ask the daemon at {path}: {reason} (it has ended meanwhile)",
    "H090": "cannot {what} {path}: {reason}{advice}",
    "H113": "{reason} (what virsh says)",
    "P029": "the master (pid {pid}) has more RAM than the device, or shares more than "
    "the shared region of a confined one: {end} MiB instead of {ram} MiB, and it lies "
    "where the metadata was in {path}; nothing is written there until that master has "
    "ended: {advice}",
    "R024": "cannot {action}: {reason}; the system's log may say why",
    "R040": "{reason} (what the data plane vhost-user waits for)",
    "S021": "cannot serve metrics at {address}: {reason}; choose another address, or "
    "look which program has it: ss -lxtp",
}
"""Texts that the sources do not say in one place, by their codes."""


class Texts:
    """Finds the texts in one module."""

    def __init__(self, tree: ast.Module, nodes: Iterable[ast.AST]) -> None:
        self._functions = [
            one
            for one in nodes
            if isinstance(one, ast.FunctionDef | ast.AsyncFunctionDef)
        ]
        self._module = tree

    def of(self, node: ast.expr, where: ast.expr, depth: int = 0) -> str:
        """Return what an expression says, which stands at `where`."""
        match node:
            case ast.Constant(value=value):
                return " ".join(str(value).split("\n")).replace("  ", " ")
            case ast.JoinedStr(values=parts):
                return "".join(self._part(one, where, depth) for one in parts)
            case ast.BinOp(left=left, op=ast.Add(), right=right):
                return self.of(left, where, depth) + self.of(right, where, depth)
            case ast.IfExp(body=first, orelse=second):
                return f"{self.of(first, where, depth)} / " + self.of(
                    second, where, depth
                )
            case ast.BoolOp(values=[*values]):
                return " / ".join(self.of(one, where, depth) for one in values)
            case ast.Name(id=name):
                if depth < 3 and (found := self._assigned(name, where)):
                    return self.of(found, where, depth + 1)
            case ast.Call(func=ast.Name(id=name)) if depth < 3:
                if said := self._returned(name, depth):
                    return said
        return f"{{{_name(node)}}}"

    def _part(self, node: ast.expr, where: ast.expr, depth: int) -> str:
        match node:
            case ast.FormattedValue(value=ast.IfExp() | ast.BoolOp()):
                return f"{{{_UNKNOWN}}}"
            case ast.FormattedValue(value=value):
                if isinstance(value, ast.Name) and depth < 3:
                    found = self._assigned(value.id, where)
                    # A number that is no constant begins as it, and may be any later.
                    if isinstance(found, ast.Constant) and (
                        value.id.isupper() or isinstance(found.value, str)
                    ):
                        return self.of(found, where, depth + 1)
                return f"{{{_name(value)}}}"
        return self.of(node, where, depth)

    def _assigned(self, name: str, where: ast.expr) -> ast.expr | None:
        """Return the text that a name was given last, in the function or the module."""
        inside = [
            one
            for one in self._functions
            if one.lineno <= where.lineno <= (one.end_lineno or 0)
        ]
        scopes: list[ast.AST] = [*reversed(inside), self._module]
        for scope in scopes:
            found: ast.expr | None = None
            body = scope.body if isinstance(scope, ast.Module) else ast.walk(scope)
            for one in body:
                if (
                    isinstance(one, ast.Assign)
                    and one.lineno < where.lineno
                    and name in [_plain(target) for target in one.targets]
                ):
                    found = one.value
            if isinstance(found, ast.Constant | ast.JoinedStr | ast.IfExp | ast.BinOp):
                return found
            if isinstance(found, ast.Call):
                return found
        return None

    def _returned(self, name: str, depth: int) -> str:
        """Return what a function of the module returns."""
        for one in self._functions:
            if one.name == name:
                texts = [
                    self.of(found.value, found.value, depth + 1)
                    for found in ast.walk(one)
                    if isinstance(found, ast.Return) and found.value
                ]
                return " / ".join(dict.fromkeys(texts))
        return ""


def _plain(node: ast.expr) -> str:
    return node.id if isinstance(node, ast.Name) else ""


def _name(node: ast.expr) -> str:
    """Return the last name in an expression, as a reader understands it."""
    match node:
        case ast.Name(id=name) | ast.Attribute(attr=name):
            plain = name.strip("_").lower().replace("_", " ")
            return _BETTER.get(plain, plain)
        case ast.Subscript(slice=ast.Constant(value=str(key))):
            return key
        case ast.Subscript(value=value):
            return _name(value)
        case ast.Call(func=ast.Attribute(attr="join"), args=[one]):
            return _name(one)
        case ast.Call(
            func=ast.Attribute(attr="get"), args=[ast.Constant(value=key), *_]
        ):
            return str(key)
        case ast.Call(
            func=ast.Name(id=name) | ast.Attribute(attr=name), args=[one, *_]
        ) if name in _PLAIN_CALLS:
            return _name(one)
        case ast.Call(func=func):
            return _name(func)
        case ast.BinOp(left=left):
            return _name(left)
        case ast.GeneratorExp(elt=elt):
            return _name(elt)
    return _UNKNOWN

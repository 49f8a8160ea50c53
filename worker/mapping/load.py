"""Reads a mapping file; every fault is named with file, line and place."""

from __future__ import annotations

import difflib
from collections.abc import Iterator
from pathlib import Path
from typing import Any, cast

import yaml
from pydantic import ValidationError

from worker.errors import MappingError
from worker.mapping.model import Child, CollectionMapping, Column, Faults, Mapping, Parent, Tenant

_MODELS = (Mapping, CollectionMapping, Column, Tenant, Parent, Child)
_KNOWN = sorted({name for model in _MODELS for name in model.model_fields})


def load(path: Path) -> Mapping:
    """Return the mapping in a file; `MappingError` lists all faults, each with line and place."""
    try:
        text = path.read_text(encoding="utf-8")
    except OSError as error:
        raise MappingError(
            f"cannot read mapping {path} ({error.strerror})", remedy="set CROSSFADE_MAPPING"
        ) from None
    try:
        root = cast("yaml.Node | None", yaml.compose(text, Loader=yaml.SafeLoader))  # pyright: ignore[reportUnknownMemberType]
        content = yaml.safe_load(text)
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        line = f":{mark.line + 1}" if mark else ""
        raise MappingError(f"{path}{line}: not YAML: {getattr(error, 'problem', 'unreadable')}") from None
    faults = list(_twice(root))
    try:
        mapping = Mapping.model_validate(content)
        if not faults:
            return mapping
    except ValidationError as error:
        for fault in error.errors(include_url=False, include_input=False):
            faults.extend(_faults(dict(fault)))
    told = (f"{path}:{_line(root, place)}: {_named(place)}: {message}" for place, message in faults)
    raise MappingError("\n".join(told))


_Fault = tuple[tuple[Any, ...], str]


def _named(place: tuple[Any, ...]) -> str:
    return ".".join(str(part) for part in place if part != "[key]") or "mapping"


def _faults(fault: dict[str, Any]) -> list[_Fault]:
    location: tuple[Any, ...] = fault["loc"]
    error = fault.get("ctx", {}).get("error")
    if isinstance(error, Faults):
        return [((*location, *place), message) for place, message in error.faults]
    message = str(fault["msg"]).removeprefix("Value error, ")
    if fault["type"] == "extra_forbidden":
        near = difflib.get_close_matches(str(location[-1]), _KNOWN, n=1)
        message = "no such setting" + (f"; did you mean {near[0]}?" if near else "")
    return [(location, message)]


def _twice(node: yaml.Node | None, place: tuple[str, ...] = ()) -> Iterator[_Fault]:
    """Find keys that stand twice in one mapping: YAML's reader would silently take the last."""
    if not isinstance(node, yaml.MappingNode):
        return
    seen: dict[str, int] = {}
    for key, value in node.value:
        name = str(key.value)
        if name in seen:
            yield (*place, name), f"stands twice, in line {key.start_mark.line + 1} again"
        seen[name] = key.start_mark.line
        yield from _twice(value, (*place, name))


def _line(node: yaml.Node | None, location: tuple[Any, ...]) -> int:
    """Return the line (from 1) of the deepest node on the way that exists."""
    line = node.start_mark.line if node else 0
    for part in location:
        if not isinstance(node, yaml.MappingNode):
            break
        for key, value in node.value:
            if key.value == str(part):
                node, line = value, key.start_mark.line
                break
        else:
            break
    return line + 1

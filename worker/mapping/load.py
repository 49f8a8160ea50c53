"""Reads a mapping file; every fault is named with file, line and place."""

from __future__ import annotations

import difflib
from collections.abc import Iterator
from pathlib import Path
from typing import Any, cast

import yaml
from pydantic import BaseModel, ValidationError

from worker.errors import MappingError
from worker.mapping.clashes import Faults
from worker.mapping.model import Child, CollectionMapping, Column, Mapping, Parent, Tenant

_LISTS: dict[Any, type[BaseModel]] = {"collections": CollectionMapping, "columns": Column, "children": Child}
_BLOCKS: dict[Any, type[BaseModel]] = {"tenant": Tenant, "parent": Parent}
_BLOCK = "must be a block of `name: value` lines"
_MESSAGES = {
    "model_type": _BLOCK,
    "dict_type": _BLOCK,
    "string_type": "must be text: a number, yes, no or a date needs quotes",
    "bool_type": "must be true or false",
    "bool_parsing": "must be true or false",
    "too_short": "must name at least one",
    "string_too_short": "must not be empty",
    "tuple_type": "must be a list",
}
"""Pydantic's kinds of fault, in a mapping author's words."""


def load(path: Path) -> Mapping:
    """Return the mapping in a file; `MappingError` lists all faults, each with line and place."""
    try:
        text = path.read_text(encoding="utf-8")
    except OSError as error:
        raise MappingError(
            f"cannot read mapping {path} ({error.strerror})", remedy="set CROSSFADE_MAPPING"
        ) from None
    except UnicodeDecodeError as error:
        line = error.object.count(b"\n", 0, error.start) + 1
        raise MappingError(f"{path}:{line}: not UTF-8") from None
    try:
        root = cast("yaml.Node | None", yaml.compose(text, Loader=yaml.SafeLoader))  # pyright: ignore[reportUnknownMemberType]
        content = yaml.safe_load(text)
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        line = f":{mark.line + 1}" if mark else ""
        problem = str(getattr(error, "problem", None) or "unreadable")
        if problem.startswith("but "):
            problem = f"{getattr(error, 'context', '')} {problem}"
        raise MappingError(f"{path}{line}: not YAML: {problem}") from None
    if root is None:
        raise MappingError(
            f"{path}:1: the file is empty", remedy="docs/mapping.md has a mapping to begin with"
        )
    faults = list(_keys(root))
    try:
        mapping = Mapping.model_validate(content)
        if not faults:
            return mapping
    except ValidationError as error:
        found = [dict(fault) for fault in error.errors(include_url=False, include_input=False)]
        faults += [one for fault in found for one in _faults(fault)]
        meant = {(*place[:-1], near) for place, near in map(_misspelt, found) if near}
        # A misspelt setting is one fault, though it is missing as well.
        faults = [(place, told) for place, told in faults if place not in meant or told != _missing(place)]
        faults = list(dict.fromkeys(faults))
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
    if location[-2:-1] == ("constant",):  # a union: one fault for each of its types
        return [(location[:-1], "must be text or a whole number")]
    match fault["type"]:
        case "missing":
            return [(location, _missing(location))]
        case "extra_forbidden":
            near = _misspelt(fault)[1]
            return [(location, "no such setting" + (f"; did you mean {near}?" if near else ""))]
        case "string_type" if location[-1:] == ("[key]",):
            return []  # told by `_keys`, which knows how it is written
        case kind:
            told = str(fault["msg"]).removeprefix("Value error, ").replace("Input should be", "must be")
            return [(location, _MESSAGES.get(kind, told))]


def _missing(location: tuple[Any, ...]) -> str:
    described = _model_at(location).model_fields[location[-1]].description
    return "must be set" + (f" ({described})" if described else "")


def _misspelt(fault: dict[str, Any]) -> tuple[tuple[Any, ...], str | None]:
    """Return the place of a setting that is none, and the nearest one that is."""
    location: tuple[Any, ...] = fault["loc"]
    if fault["type"] != "extra_forbidden":
        return location, None
    near = difflib.get_close_matches(str(location[-1]), list(_model_at(location).model_fields), n=1)
    return location, near[0] if near else None


def _model_at(location: tuple[Any, ...]) -> type[BaseModel]:
    """Return the part of the file that has, or has not, the setting at a place."""
    model: type[BaseModel] = Mapping
    listed: type[BaseModel] | None = None
    for part in location[:-1]:
        if listed:  # the part is a name that its author chose
            model, listed = listed, None
        elif part in _LISTS:
            listed = _LISTS[part]
        else:
            model = _BLOCKS.get(part, model)
    return model


def _keys(node: yaml.Node, place: tuple[str, ...] = ()) -> Iterator[_Fault]:
    """Find keys that stand twice in one block, of which YAML's reader would silently take the last.

    And keys that YAML takes for something else than text, such as ``no`` or ``12``.
    """
    if not isinstance(node, yaml.MappingNode):
        return
    seen: set[str] = set()
    for key, value in node.value:
        name = str(key.value)
        if name in seen:
            yield (*place, name), f"stands twice, in line {key.start_mark.line + 1} again"
        seen.add(name)
        if key.tag not in ("tag:yaml.org,2002:str", "tag:yaml.org,2002:merge"):
            yield (*place, name), _MESSAGES["string_type"]
        yield from _keys(value, (*place, name))


def _line(node: yaml.Node | None, location: tuple[Any, ...]) -> int:
    """Return the line (from 1) of the deepest node on the way that exists."""
    line = node.start_mark.line if node else 0
    for part in location:
        if isinstance(node, yaml.SequenceNode) and str(part).isdecimal() and int(part) < len(node.value):
            item: yaml.Node = node.value[int(part)]
            node, line = item, item.start_mark.line
            continue
        if not isinstance(node, yaml.MappingNode):
            break
        for key, value in node.value:
            if key.value == str(part):
                node, line = value, key.start_mark.line
                break
        else:
            break
    return line + 1

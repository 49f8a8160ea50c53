"""Reads a mapping file; every fault is named with file, line and place."""

from __future__ import annotations

import difflib
from pathlib import Path
from typing import Any, cast

import yaml
from pydantic import ValidationError

from worker.errors import MappingError
from worker.mapping.model import Child, CollectionMapping, Column, Mapping, Tenant

_KNOWN = sorted(
    {name for model in (Mapping, CollectionMapping, Column, Tenant, Child) for name in model.model_fields}
)


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
    try:
        return Mapping.model_validate(content)
    except ValidationError as error:
        faults = [
            _fault(path, root, dict(fault)) for fault in error.errors(include_url=False, include_input=False)
        ]
        raise MappingError("\n".join(faults)) from None


def _fault(path: Path, root: yaml.Node | None, fault: dict[str, Any]) -> str:
    location: tuple[Any, ...] = fault["loc"]
    place = ".".join(str(part) for part in location if part != "[key]") or "mapping"
    message = str(fault["msg"]).removeprefix("Value error, ")
    if fault["type"] == "extra_forbidden":
        near = difflib.get_close_matches(str(location[-1]), _KNOWN, n=1)
        message = "no such setting" + (f"; did you mean {near[0]}?" if near else "")
    return f"{path}:{_line(root, location)}: {place}: {message}"


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

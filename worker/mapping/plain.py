"""Plain JSON for a jsonb column, as an application wants to read it, with notes where that is not exact."""

from __future__ import annotations

import math
from datetime import datetime
from typing import Any, cast
from uuid import UUID

from bson import Decimal128, Int64, ObjectId


def plain(value: Any, path: str, notes: dict[str, Any]) -> Any:
    """Return a value as plain JSON; each part that this cannot say exactly is added to ``notes`` by path."""
    return value if _exact(value) else _noted(value, path, notes)


def _exact(value: Any) -> bool:
    """Tell whether JSON says a value exactly. Most values: so they are looked at without naming paths."""
    kind = type(value)  # pyright: ignore[reportUnknownVariableType]
    if kind is str:
        return "\0" not in value
    if value is None or kind is bool or kind is int or kind is Int64:
        return True
    if kind is dict:
        return all(map(_exact, cast("dict[str, Any]", value).values()))
    if kind is list:
        return all(map(_exact, cast("list[Any]", value)))
    return kind is float and _plain_double(value)


def _noted(value: Any, path: str, notes: dict[str, Any]) -> Any:
    kind = type(value)  # pyright: ignore[reportUnknownVariableType]
    if kind is str:
        if "\0" in value:
            notes[path] = value
        return nearest(value)
    if value is None or kind is bool or kind is int:
        return value
    if kind is Int64:
        return int(value)
    if kind is dict:
        document = cast("dict[str, Any]", value)
        return {name: _noted(item, f"{path}.{_step(name)}", notes) for name, item in document.items()}
    if kind is list:
        items = cast("list[Any]", value)
        return [_noted(item, f"{path}.{position}", notes) for position, item in enumerate(items)]
    if kind is float and _plain_double(value):
        return value
    notes[path] = value
    return nearest(value)


def _step(name: str) -> str:
    """Return a field's name as one step of a note's path: ``~1`` for a dot, ``~0`` for a tilde."""
    return name.replace("~", "~0").replace(".", "~1") if "~" in name or "." in name else name


def _plain_double(value: float) -> bool:
    # jsonb's numbers are decimals: they keep "5.0" apart from "5", but neither the sign of zero nor an
    # exponent, so that 1e16 would come back as an integer.
    return abs(value) < 1e16 and not (value == 0 and math.copysign(1, value) < 0)


def nearest(value: Any) -> Any:
    """Return what an application would like to read in place of a value that JSON does not have."""
    if type(value) is str:
        return value.replace("\0", "\ufffd")
    match value:
        case datetime():
            return value.isoformat(timespec="milliseconds").replace("+00:00", "Z")
        case UUID() | ObjectId() | Decimal128():
            return str(value)
        case float() if math.isfinite(value):
            return value
        case _:
            return None

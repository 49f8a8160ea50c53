"""What plain columns cannot hold, as canonical Extended JSON that PostgreSQL's jsonb can hold.

jsonb has no NUL in strings; a string with one is written ``{"$utf8": "<base64>"}``.
"""

from __future__ import annotations

from base64 import b64encode
from collections.abc import Mapping
from typing import Any, cast

from bson import Code, json_util
from bson.binary import UuidRepresentation

_OPTIONS = json_util.JSONOptions(
    json_mode=json_util.JSONMode.CANONICAL, uuid_representation=UuidRepresentation.STANDARD
)


def extended(value: Any) -> Any:
    """Return a value of any BSON type as JSON-ready canonical Extended JSON."""
    if value is None or value is True or value is False:
        return value
    if type(value) is str:
        return value if "\0" not in value else {"$utf8": b64encode(value.encode()).decode()}
    if isinstance(value, Mapping):
        document = cast("Mapping[str, Any]", value)
        return {name: extended(item) for name, item in document.items()}
    if isinstance(value, list):
        return [extended(item) for item in cast("list[Any]", value)]
    if isinstance(value, Code) and value.scope is not None:
        return {"$code": str(value), "$scope": extended(value.scope)}
    return json_util.default(value, json_options=_OPTIONS)

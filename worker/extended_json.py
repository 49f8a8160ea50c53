"""Values of BSON types as commands print them, canonical Extended JSON, and ids as people write them."""

from __future__ import annotations

import json
from typing import Any
from uuid import UUID

from bson import ObjectId, json_util
from bson.binary import UuidRepresentation
from bson.errors import BSONError

from worker.errors import ConfigurationError

_CANONICAL = json_util.JSONOptions(
    json_mode=json_util.JSONMode.CANONICAL, uuid_representation=UuidRepresentation.STANDARD
)
_READABLE = json_util.JSONOptions(uuid_representation=UuidRepresentation.STANDARD, tz_aware=True)


def extended(value: Any) -> Any:
    """Return a value of any BSON type, ready for JSON."""
    return json.loads(json_util.dumps(value, json_options=_CANONICAL))


def parse_id(text: str, where: str) -> Any:
    """Return the document id that a user has written; a row id is as good: it is its own row id.

    `ConfigurationError` where it is none; ``where`` names what was written.
    """
    try:
        return UUID(text)
    except ValueError:
        pass
    if ObjectId.is_valid(text):
        return ObjectId(text)
    try:
        return json_util.loads(text, json_options=_READABLE)
    except (ValueError, TypeError, KeyError, BSONError):
        raise ConfigurationError(
            f"{where}: neither a row id, nor an ObjectId, nor JSON",
            remedy="""write a string as '"text"'""",
        ) from None

"""Validations of collections: what of one is ours, which refuses tenants, and what the application's own."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any, NamedTuple
from uuid import UUID

import structlog
from bson import ObjectId
from bson.binary import Binary

from topics import Collection
from worker.mongo.fence_documents import Fence, Value

_log = structlog.get_logger()
OURS = "crossfade"
"""Marks our part of a validator, as its $comment."""
_NOTHING = {"_id": {"$exists": False}}
"""What no document passes: for a collection whose documents are all of one tenant."""
LEVEL, ACTION = "strict", "error"


class Rule(NamedTuple):
    """How a real collection tells whose a document is: at ``path``, or all are of one tenant."""

    collection: Collection
    path: str | None
    only: UUID | None


class Validation(NamedTuple):
    """A collection's validation, as listCollections tells it."""

    validator: Mapping[str, Any]
    level: str
    action: str


NONE = Validation({}, LEVEL, ACTION)


def ours(rule: Rule, fences: Iterable[Fence]) -> dict[str, Any]:
    """Return our part of a collection's validator; empty where no tenant is refused there."""
    if rule.path is None:
        return dict(_NOTHING) if any(one.tenant == rule.only for one in fences) else {}
    values = [_plain(value) for one in fences for value in one.values]
    return {rule.path: {"$nin": values}} if values else {}


def own_of(namespace: str, aside: Validation | None, now: Validation | None) -> Validation:
    """Return the application's own validation: set aside, or as it is now where ours is not there."""
    if now is None:
        return NONE
    if not ours_in(now):
        if aside is not None and aside != now:
            _log.error("the application changed a fenced collection's validator", collection=namespace)
        return now
    if aside is None:
        _log.error("what a validator of ours replaced is not known", collection=namespace)
    return aside or NONE


def _plain(value: Value) -> Value:
    """Return a value as `command` takes it, which does not know how this client writes UUIDs."""
    return Binary.from_uuid(value) if isinstance(value, UUID) else value


def with_ours(part: dict[str, Any], own: Validation) -> Validation:
    """Return the validation with our part, and with the application's where that goes with ours."""
    if not part:
        return own
    marked: list[dict[str, Any]] = [{"$comment": OURS, **part}]
    if own.validator and (own.level, own.action) == (LEVEL, ACTION):
        marked.append(dict(own.validator))
    return Validation({"$and": marked}, LEVEL, ACTION)


def ours_in(now: Validation | None) -> dict[str, Any]:
    """Return our part of a validation, whatever its level; empty where it has none."""
    if now is None:
        return {}
    parts = now.validator.get("$and")
    if not isinstance(parts, list) or not parts or parts[0].get("$comment") != OURS:
        return {}
    return {key: value for key, value in parts[0].items() if key != "$comment"}


def undecoded(value: Any) -> Any:
    """Return what was decoded with UUIDs as `command` takes them."""
    if isinstance(value, Mapping):
        return {key: undecoded(one) for key, one in value.items()}
    if isinstance(value, list):
        return [undecoded(one) for one in value]
    return _plain(value)


def values_of(tenant: UUID, objectid: ObjectId | None) -> list[Value]:
    """Return what a tenant's id may be in MongoDB, where its row id tells that."""
    return [tenant] if objectid is None else [tenant, objectid]


def refuses(now: Validation | None, part: Mapping[str, Any], *, exactly: bool = False) -> bool:
    """Whether a validation refuses what a part of ours does; ``exactly``: and refuses nobody else."""
    has = ours_in(now)
    if not part:
        return not (exactly and has)
    if now is None or (now.level, now.action) != (LEVEL, ACTION) or has.keys() != part.keys():
        return False
    for path, wanted in part.items():
        if exactly or "$nin" not in wanted:
            if has[path] != wanted:
                return False
        elif any(value not in has[path].get("$nin", ()) for value in wanted["$nin"]):
            return False
    return True

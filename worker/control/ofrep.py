"""The flag ``crossfade.datastore`` by OpenFeature's Remote Evaluation Protocol (OFREP 0.1), for any SDK.

Advice, as every answer about a phase is: the fences of both databases are the law.
"""

from __future__ import annotations

import hashlib
from typing import Any, NamedTuple
from uuid import UUID

import orjson

from worker.postgres.flags import TenantPhase

FLAG = "crossfade.datastore"
_IN_POSTGRES = frozenset({"postgres", "complete", "rolling_back"})
_WRITABLE = frozenset({"mongo", "postgres", "complete"})


class Refused(Exception):
    """An evaluation that cannot be done: OFREP's error code and words for a person."""

    def __init__(self, code: str, details: str, status: int = 400) -> None:
        self.code, self.details, self.status = code, details, status
        super().__init__(details)


class Evaluated(NamedTuple):
    """A flag's value for a tenant, as OFREP's evaluationSuccess."""

    body: dict[str, Any]

    @property
    def etag(self) -> str:
        """The entity tag of a bulk answer that holds this alone."""
        return f'"{hashlib.sha256(orjson.dumps(self.body)).hexdigest()[:32]}"'


def targeting_key(body: bytes) -> UUID:
    """Return the tenant that a request is about; `Refused` when it names none."""
    try:
        request = orjson.loads(body)
    except orjson.JSONDecodeError:
        raise Refused("PARSE_ERROR", "the body is no JSON") from None
    if not isinstance(request, dict):
        raise Refused("PARSE_ERROR", "the body is no JSON object")
    context = request.get("context")
    if context is not None and not isinstance(context, dict):
        raise Refused("INVALID_CONTEXT", "context is no object")
    key = (context or {}).get("targetingKey")
    if key is None or key == "":
        raise Refused("TARGETING_KEY_MISSING", "context.targetingKey must be the tenant's UUID")
    try:
        return UUID(key)
    except (ValueError, AttributeError, TypeError):
        raise Refused("INVALID_CONTEXT", "context.targetingKey is no UUID") from None


def evaluate(found: TenantPhase | None) -> Evaluated:
    """Return the flag for a tenant; one that nobody has seen yet is in MongoDB."""
    phase, epoch = (found.phase, found.epoch) if found else ("mongo", 0)
    value = "postgres" if phase in _IN_POSTGRES else "mongo"
    return Evaluated(
        {
            "key": FLAG,
            "value": value,
            "variant": value,
            "reason": "TARGETING_MATCH" if found else "DEFAULT",
            "metadata": {"phase": phase, "epoch": epoch, "writable": phase in _WRITABLE},
        }
    )


def matches(if_none_match: str | None, etag: str) -> bool:
    """Whether the caller has this answer already (RFC 9110, 13.1.2)."""
    given = [one.strip().removeprefix("W/") for one in (if_none_match or "").split(",")]
    return "*" in given or etag in given

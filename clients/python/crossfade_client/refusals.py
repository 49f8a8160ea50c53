"""Which errors are a fence's, and of which database. The error alone does not always tell: see `Router`."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, NamedTuple

from crossfade_client.errors import Fenced, RouterError
from crossfade_client.phases import Store

try:
    from pymongo.errors import BulkWriteError, OperationFailure
except ImportError:  # an application that has no MongoDB driver has no errors of it
    BulkWriteError = OperationFailure = ()

_FENCE_STATE = "XF001"
_SERIALIZATION = "40001"
_FENCE_FUNCTION = "crossfade.fence()"
_VALIDATION = 121  # MongoDB's DocumentValidationFailure
_DONE = ("nInserted", "nModified", "nRemoved", "nUpserted")


class Refusal(NamedTuple):
    """A database refused a write. ``snapshot``: only because the transaction's snapshot was too old.

    ``partly``: some operations of a bulk were done before.
    """

    store: Store
    snapshot: bool = False
    partly: bool = False


def of(error: BaseException) -> Refusal | None:
    """Return the refusal that an error, or what it was raised from, tells; None for every other error."""
    for one in _causes(error):
        if isinstance(one, Fenced):
            return Refusal("mongo")
        if isinstance(one, RouterError):
            return None  # said of a refusal, and not to be undone by doing the unit again
        if (found := _mongo(one) or _postgres(one)) is not None:
            return found
    return None


def _causes(error: BaseException) -> Iterator[BaseException]:
    seen: set[int] = set()
    one: Any = error
    while isinstance(one, BaseException) and id(one) not in seen:
        seen.add(id(one))
        yield one
        one = one.__cause__ or getattr(one, "orig", None)  # SQLAlchemy's errors carry the driver's as `orig`


def _postgres(error: BaseException) -> Refusal | None:
    state = getattr(error, "sqlstate", None)  # asyncpg's and psycopg's name for it
    if state == _FENCE_STATE:
        return Refusal("postgres")
    if state == _SERIALIZATION and _FENCE_FUNCTION in _context(error):
        return Refusal("postgres", snapshot=True)
    return None


def _context(error: BaseException) -> str:
    return str(
        getattr(error, "context", None) or getattr(getattr(error, "diag", None), "context", None) or ""
    )


def _mongo(error: BaseException) -> Refusal | None:
    if isinstance(error, BulkWriteError):
        details: Any = error.details or {}
        errors = details.get("writeErrors", [])
        if not errors or any(one.get("code") != _VALIDATION for one in errors):
            return None  # something else is wrong too: that must be seen
        return Refusal("mongo", partly=any(details.get(name) for name in _DONE))
    if isinstance(error, OperationFailure) and error.code == _VALIDATION:
        return Refusal("mongo")
    return None

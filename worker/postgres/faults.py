"""The one table from kind of PostgreSQL error to what happens, and what an operator should do.

Codes: PostgreSQL's appendix A, "Error Codes"; the first two characters are a class.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import contextmanager
from enum import Enum, auto

import asyncpg

from worker.errors import ServiceUnavailable, Transient


class Action(Enum):
    """What apply does about an error."""

    RETRY = auto()  # the same transaction again, with backoff: nothing is wrong with the data
    PARK = auto()  # this event must wait for another one; it is retried until it fits
    DEAD = auto()  # this event's data will never fit; it becomes a dead letter
    STOP = auto()  # the database is not what this program needs; a person must act


# asyncpg says InternalClientError when a server dies between two messages of one statement.
CONNECTION_LOST = (OSError, TimeoutError, asyncpg.InterfaceError, asyncpg.InternalClientError)
FAULTS = (asyncpg.PostgresError, *CONNECTION_LOST)
"""Whatever a statement may raise that is no bug."""

_STRANGE_SESSION = (
    "prepared statements come and go: a pooler in between that was not noticed; connect past it, or let it "
    "pool by session"
)
_TABLE: dict[str, tuple[Action, str]] = {
    "23503": (
        Action.PARK,
        "a row that it refers to is missing, or one that it removes is still in use",
    ),
    "23505": (Action.PARK, "another row still holds the unique value"),
    "23P01": (Action.PARK, "another row is still in the way of an exclusion constraint"),
    "23": (Action.DEAD, "the row breaks a constraint of the table"),
    "22": (Action.DEAD, "a value does not fit its column"),
    "54": (Action.DEAD, "a value is too large for PostgreSQL or one of its indexes"),
    "P0": (Action.DEAD, "a trigger of the application refused the row"),
    "21": (Action.DEAD, "a trigger of the application found more rows than it expected"),
    "40": (Action.RETRY, "another transaction was in the way"),
    "55P03": (Action.RETRY, "a lock was not free in time"),
    "57014": (Action.RETRY, "a statement was cancelled or ran too long"),
    "57": (Action.RETRY, "PostgreSQL is shutting down or starting"),
    "53": (Action.RETRY, "PostgreSQL has no room, memory or connection left; give it more"),
    "08": (Action.RETRY, "the connection was lost"),
    "25006": (Action.RETRY, "the server is read-only: a standby, or a failover under way"),
    "25": (Action.RETRY, "the transaction was ended from outside"),
    "42501": (Action.STOP, "the sync role lacks a privilege; run `crossfade schema apply`"),
    "42": (Action.STOP, "a table or column is missing or different; run `crossfade schema apply`"),
    "42P05": (Action.STOP, _STRANGE_SESSION),
    "26": (Action.STOP, _STRANGE_SESSION),
    "3F": (Action.STOP, "a schema is missing; run `crossfade schema apply`"),
    "28": (Action.STOP, "the user or password is refused; check CROSSFADE_POSTGRES_DSN"),
    "3D": (Action.STOP, "the database is missing; check CROSSFADE_POSTGRES_DSN"),
}


_USING = re.compile("[(（][^()（）]*USING[^()（）]*[)）]")
_KINDS = {"23503": "foreign_key", "23505": "unique", "23P01": "exclusion", "42501": "row_tenant"}

# SQL leaves the classes from 5 to 9 and from I to Z to implementations: a code there that is none of
# PostgreSQL's own, nor our fence's, is one that a trigger of the application raised.
_CHOSEN = frozenset("56789IJKLMNOPQRSTUVWXYZ")
_NOT_CHOSEN = frozenset({"53", "54", "55", "57", "58", "72", "HV", "P0", "XX", "XF"})


def kind_for(error: BaseException) -> str:
    """Return the dead letter's kind for an error that one event's data causes."""
    code = _field(error, "sqlstate") if isinstance(error, asyncpg.PostgresError) else None
    return _KINDS.get(code or "", "data")


def refusal(kind: str, constraint: str, table: str) -> str:
    """Return the reason of a parked event, as of the error that PostgreSQL would have raised."""
    code = next(code for code, its in _KINDS.items() if its == kind)
    return f"{_TABLE[code][1]}: {code} (table {table}, constraint {constraint})"


_RETRY_CLASSES = {
    "40": "conflict",  # a deadlock, or a serialization failure
    "55": "lock",
    "57": "cancelled",  # by its time limit, or by a server that shuts down
    "53": "resources",
    "08": "connection",
    "25": "session",  # read-only, or ended from outside
}
RETRY_REASONS = (*dict.fromkeys(_RETRY_CLASSES.values()), "data", "concurrent", "other")
"""Every class that `retry_reason` returns. ``data``: begun again with savepoints, to find the refused event.
``concurrent``: another worker was first."""


def unusable(error: BaseException) -> bool:
    """Whether the connection must be ended, though it still looks open.

    A server that has become a standby stays one, and another may be the primary by now.
    """
    if isinstance(error, asyncpg.PostgresError):
        return _field(error, "sqlstate") == "25006"
    return isinstance(error, TimeoutError | asyncpg.InternalClientError)


def retry_reason(error: BaseException) -> str:
    """Return the class, one of few, of an error after which a transaction is begun again."""
    if isinstance(error, asyncpg.PostgresError):
        if action_for(error)[0] in (Action.PARK, Action.DEAD):
            return "data"
        return _RETRY_CLASSES.get((_field(error, "sqlstate") or "")[:2], "other")
    if isinstance(error, CONNECTION_LOST):
        return "connection"
    return "concurrent" if isinstance(error, Transient) else "other"


def action_for(error: BaseException) -> tuple[Action, str]:
    """Return what to do about an error, and why in words."""
    if isinstance(error, asyncpg.InvalidCachedStatementError):
        return Action.RETRY, "a table that a prepared statement reads was altered"
    if isinstance(error, asyncpg.PostgresError):
        code = _field(error, "sqlstate") or ""
        if code == "42501" and _of_another_tenant(error):
            return (
                Action.DEAD,
                "a row of it stands under another tenant; `crossfade repair` mends it",
            )
        if code[:1] in _CHOSEN and code[:2] not in _NOT_CHOSEN:
            return _TABLE["P0"]
        return _TABLE.get(code) or _TABLE.get(code[:2]) or (Action.STOP, "an error that has no rule")
    if isinstance(error, asyncpg.InterfaceError) and isinstance(error, ValueError):
        return Action.DEAD, "a value does not fit its column"  # asyncpg could not encode it
    if isinstance(error, CONNECTION_LOST):
        return Action.RETRY, "the connection was lost"
    return Action.STOP, "an error that has no rule"


def _of_another_tenant(error: asyncpg.PostgresError) -> bool:
    """Whether row-level security hides the row that was to be overwritten.

    The function raises the error also where the new row is refused; only the text tells them apart, and in
    every language it names the kind of expression, in brackets.
    """
    of_rows = _field(error, "server_source_function") == "ExecWithCheckOptions"
    return of_rows and _USING.search(str(error)) is not None


def not_begun(what: str, error: BaseException) -> ServiceUnavailable:
    """Say why PostgreSQL did not let something begin; most of it passes."""
    action, why = action_for(error)
    if action is Action.RETRY:
        return ServiceUnavailable(
            f"PostgreSQL does not let {what} begin now ({describe(error)}): {why}",
            remedy="see that it is well, and that the connection strings name the primary; then try again",
        )
    return ServiceUnavailable(
        f"PostgreSQL refuses {what} ({describe(error)})",
        remedy="run `crossfade schema apply`, and check the connection strings",
    )


@contextmanager
def beginning(what: str) -> Iterator[None]:
    """Turn whatever a statement raises before something has begun into `not_begun`."""
    try:
        yield
    except FAULTS as error:
        raise not_begun(what, error) from None


def describe(error: BaseException) -> str:
    """Return an error without any value of a row: its name, code, and the column or constraint it names."""
    if not isinstance(error, asyncpg.PostgresError):
        return type(error).__name__
    names = [
        f"{label} {name}"
        for label, name in (
            ("table", _field(error, "table_name")),
            ("column", _field(error, "column_name")),
            ("constraint", _field(error, "constraint_name")),
        )
        if name
    ]
    return f"{_field(error, 'sqlstate')} {type(error).__name__}" + (f" ({', '.join(names)})" if names else "")


def _field(error: asyncpg.PostgresError, name: str) -> str | None:
    # asyncpg sets a server's fields on the instance, unknown to its types.
    return getattr(error, name, None)

"""The audit log: what people did, and what publish did by itself, noted where nobody can change it."""

from __future__ import annotations

import getpass
from collections.abc import Mapping, Sequence
from datetime import datetime
from typing import Any, NamedTuple

import orjson

from worker.postgres.connect import Connection

_NOTES = """
INSERT INTO crossfade.audit (os_user, action, subject)
SELECT $1, $2, value FROM jsonb_array_elements($3::jsonb)
"""
_COUNT = """
SELECT count(DISTINCT (subject->>'collection', subject->>'row_id')) FROM crossfade.audit
WHERE action = $1 AND at > clock_timestamp() - interval '1 day' AND subject @> $2::jsonb
"""
_NOTE = "INSERT INTO crossfade.audit (os_user, action, subject) VALUES ($1, $2, $3)"
BEGAN_ANEW = "publish: began anew"
COPY_AGAIN = "publish: copy again"
_OURS = [BEGAN_ANEW, COPY_AGAIN]
_LAST = """
SELECT at, action, subject::text, reason FROM crossfade.audit WHERE action = ANY($1::text[])
ORDER BY audit_id DESC LIMIT $2
"""


class Incident(NamedTuple):
    """What publish did by itself. ``subject``: what it was done to, never a value of a row."""

    at: datetime
    action: str
    subject: dict[str, Any]
    reason: str


async def incidents(connection: Connection, most: int) -> list[Incident]:
    """Return what publish did by itself, the newest first."""
    rows = await connection.fetch(_LAST, _OURS, most)
    return [Incident(row[0], row[1], orjson.loads(row[2]), row[3]) for row in rows]


async def note(connection: Connection, action: str, subject: Mapping[str, Any]) -> None:
    """Note an action, in the transaction that does it. ``subject``: names and settings, no value of a row."""
    await connection.execute(_NOTE, os_user(), action, orjson.dumps(subject))


async def notes(connection: Connection, action: str, subjects: Sequence[Mapping[str, Any]]) -> None:
    """Note one action for each of several subjects, as `note`."""
    await connection.execute(_NOTES, os_user(), action, orjson.dumps(subjects))


async def count(connection: Connection, action: str, of: Mapping[str, Any]) -> int:
    """Return of how many documents an action was noted in the last 24 hours, by subjects that say this."""
    count: Any = await connection.fetchval(_COUNT, action, orjson.dumps(of))
    return count


def os_user() -> str:
    """Return the user of this machine, as far as it has a name: advice, no proof."""
    try:
        return getpass.getuser()
    except (OSError, KeyError, ImportError):  # a user without a name, as in a container
        return "?"

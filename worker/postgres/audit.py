"""The audit log's rows of what publish did by itself, beside those of what people did."""

from __future__ import annotations

import getpass
from datetime import datetime
from typing import Any, NamedTuple

import orjson

from worker.postgres.connect import Connection

BEGAN_ANEW = "publish: began anew"
COPY_AGAIN = "publish: copy again"
_OURS = [BEGAN_ANEW, COPY_AGAIN]
_LAST = """
SELECT at, action, subject::text, reason FROM crossfade.audit WHERE action = ANY($1::text[])
ORDER BY audit_id DESC LIMIT $2
"""


class Incident(NamedTuple):
    """One row. ``subject``: what it was done to, never a value of a row."""

    at: datetime
    action: str
    subject: dict[str, Any]
    reason: str


async def incidents(connection: Connection, most: int) -> list[Incident]:
    """Return what publish did by itself, the newest first."""
    rows = await connection.fetch(_LAST, _OURS, most)
    return [Incident(row[0], row[1], orjson.loads(row[2]), row[3]) for row in rows]


def os_user() -> str:
    """Return the user of this machine that runs the process, for the audit log: advice, no proof."""
    try:
        return getpass.getuser()
    except (OSError, KeyError, ImportError):  # a user without a name, as in a container
        return "?"

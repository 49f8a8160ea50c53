"""What people did, noted where nobody can change it."""

from __future__ import annotations

import getpass
from collections.abc import Mapping
from typing import Any

import orjson

from worker.postgres.connect import Connection

_NOTE = "INSERT INTO crossfade.audit (os_user, action, subject) VALUES ($1, $2, $3)"


async def note(connection: Connection, action: str, subject: Mapping[str, Any]) -> None:
    """Note an action, in the transaction that does it. ``subject``: names and settings, no value of a row."""
    await connection.execute(_NOTE, os_user(), action, orjson.dumps(subject))


def os_user() -> str:
    """Return the user of this machine, as far as it has a name: advice, no proof."""
    try:
        return getpass.getuser()
    except (OSError, KeyError, ImportError):  # a user without a name, as in a container
        return "?"

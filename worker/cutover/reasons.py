"""Why a move does not go on: what either database, or our own code, raises on its way, in a line."""

from __future__ import annotations

from worker.errors import CrossfadeError
from worker.mongo import client as mongo
from worker.postgres import faults as postgres

FAULTS = (CrossfadeError, *mongo.FAULTS, *postgres.FAULTS)
"""Whatever a step of a move may raise that is no bug."""


def reason(error: Exception) -> str:
    """Return why, without any value of a document or row."""
    if isinstance(error, CrossfadeError):
        return error.message
    if isinstance(error, mongo.FAULTS):
        return f"MongoDB did not go along ({mongo.describe(error)})"
    return f"PostgreSQL did not go along ({postgres.describe(error)})"

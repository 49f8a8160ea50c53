"""How far the replica set's secondaries are behind its primary."""

from __future__ import annotations

from typing import Any, NamedTuple

from pymongo.errors import OperationFailure, PyMongoError

from worker.mongo.client import REFUSED, Client, describe

_SECONDARY = 2  # those that serve reads; one that is down or recovering serves none, and is no load's victim
_PRIMARY = 1


class ReplicationLag(NamedTuple):
    """Seconds of the slowest secondary beyond a delay that it was configured to have.

    None without a secondary, or where ``unknown`` says why it cannot be told.
    """

    seconds: float | None
    unknown: str | None = None


async def replication_lag(client: Client) -> ReplicationLag:
    """Ask the replica set. Never raises a `PyMongoError`: not to know is an answer."""
    try:
        status: Any = await client.admin.command("replSetGetStatus")
        config: Any = await client.admin.command("replSetGetConfig")
    except PyMongoError as error:
        if isinstance(error, OperationFailure) and error.code in REFUSED:
            told = (
                "the MongoDB user may not run replSetGetStatus and replSetGetConfig: grant it clusterMonitor"
            )
            return ReplicationLag(None, told)
        return ReplicationLag(None, f"MongoDB does not tell it ({describe(error)})")
    delays = {member["_id"]: member.get("secondaryDelaySecs", 0) for member in config["config"]["members"]}
    return ReplicationLag(_slowest(status["members"], delays))


def _slowest(members: list[dict[str, Any]], delays: dict[int, float]) -> float | None:
    newest = max((one["optimeDate"] for one in members if one["state"] == _PRIMARY), default=None)
    if newest is None:  # between two primaries
        return None
    lags = [
        (newest - one["optimeDate"]).total_seconds() - delays.get(one["_id"], 0)
        for one in members
        if one["state"] == _SECONDARY
    ]
    return max(0.0, *lags) if lags else None

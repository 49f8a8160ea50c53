"""MongoDB's oplog: how far back it reaches, and when it will have dropped a place in the change stream."""

from __future__ import annotations

from typing import Any, NamedTuple

from bson import Timestamp
from pymongo.errors import OperationFailure, PyMongoError

from worker.mongo.client import REFUSED, Client, describe

_WITHIN_MS = 2000
_OPLOG = "oplog.rs"
_POSITION_LOST, _TRIES = 136, 10  # the oldest entry was dropped while it was read


class OplogUnknown(Exception):
    """The oplog cannot be looked at; the text says why, in one line."""


class Oplog(NamedTuple):
    """The oplog at one moment: clusterTimes as one integer, sizes in bytes, 0 where they are not known."""

    oldest: int
    newest: int
    size: int
    capacity: int

    @property
    def window(self) -> float:
        """Seconds of changes that it holds when full, at the rate of those that it holds now."""
        return self._span * max(1.0, self.capacity / max(1, self.size))

    @property
    def rate(self) -> float:
        """Bytes a second, over all that it holds."""
        return self.size / self._span

    @property
    def _span(self) -> int:
        return max(1, (self.newest >> 32) - (self.oldest >> 32))


class Forecast(NamedTuple):
    """What becomes of a place in the stream. ``drops_at``: seconds since 1970; ``left``: until then.

    ``lost``: it is dropped already. ``short``: less than a share of the window is left, or nothing.
    """

    drops_at: float
    left: float
    lost: bool
    short: bool


def forecast(oplog: Oplog, time: int, now: float, margin: float) -> Forecast:
    """Say when the oplog drops the place of a clusterTime, if changes go on at the rate of those it holds."""
    drops_at = (time >> 32) + oplog.window
    lost = time < oplog.oldest
    left = 0.0 if lost else max(0.0, drops_at - now)
    return Forecast(drops_at, left, lost, left < margin * oplog.window)


async def read_oplog(client: Client) -> Oplog:
    """Look at the primary's oplog; `OplogUnknown` where MongoDB is away, a mongos, or does not let us.

    Some services let nobody read it, and tell its ends but not its size. It then counts as full.
    """
    try:
        try:
            return await _read(client)
        except OperationFailure as error:
            if error.code not in REFUSED:
                raise
            return await _ends(client)
    except OperationFailure as error:
        remedy = ": grant clusterMonitor, and read on local" if error.code in REFUSED else ""
        raise OplogUnknown(f"MongoDB does not tell ({describe(error)}){remedy}") from None
    except PyMongoError as error:
        raise OplogUnknown(f"MongoDB cannot be reached ({describe(error)})") from None


async def _read(client: Client) -> Oplog:
    oldest, newest = await _entry(client, 1), await _entry(client, -1)
    stats = await client.local.command({"collStats": _OPLOG, "maxTimeMS": _WITHIN_MS})
    return Oplog(_time(oldest["ts"]), _time(newest["ts"]), int(stats["size"]), int(stats.get("maxSize", 0)))


async def _entry(client: Client, direction: int) -> dict[str, Any]:
    command = {
        "find": _OPLOG,
        "sort": {"$natural": direction},
        "projection": {"ts": 1},
        "limit": 1,
        "singleBatch": True,
        "maxTimeMS": _WITHIN_MS,
    }
    for left in reversed(range(_TRIES)):
        try:
            reply: Any = await client.local.command(command)
        except OperationFailure as error:
            if error.code != _POSITION_LOST or not left:
                raise
            continue
        if entries := reply["cursor"]["firstBatch"]:
            return entries[0]
    raise OplogUnknown("MongoDB shows an empty oplog")


async def _ends(client: Client) -> Oplog:
    status: Any = await client.admin.command({"serverStatus": 1, "oplog": 1, "maxTimeMS": _WITHIN_MS})
    if (ends := status.get("oplog")) is None:
        raise OplogUnknown("MongoDB does not tell: it refuses to show its oplog, and its status has none")
    return Oplog(_time(ends["earliestOptime"]), _time(ends["latestOptime"]), 0, 0)


def _time(at: Timestamp) -> int:
    return at.time << 32 | at.inc

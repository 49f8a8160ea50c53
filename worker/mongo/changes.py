"""The change stream as raw batches: one cursor on the whole deployment, documents undecoded."""

from __future__ import annotations

import re
from typing import Any, NamedTuple

from bson import Regex, Timestamp
from bson.raw_bson import RawBSONDocument
from motor.motor_asyncio import AsyncIOMotorClientSession

from worker.mapping.sources import Sources
from worker.mongo import heartbeat
from worker.mongo.client import RAW, Client

CHANGE_STREAM_HISTORY_LOST = 286

_AWAIT_MS = 500
_BATCH = 2000
_TOKEN_TIME = slice(2, 18)  # hex digits of a token's _data, after the type of its first part


class Fetched(NamedTuple):
    """One reply: changes in order, and the token after them (`postBatchResumeToken`).

    A change has `_id` (its token), `operationType`, `ns` as text, `id` of the document, `clusterTime`,
    `wallTime`, and where there are any `fullDocument`, `lsid` and `txnNumber`.
    """

    changes: list[RawBSONDocument]
    token: RawBSONDocument


def token_time(token: RawBSONDocument | dict[str, Any]) -> int:
    """Return the clusterTime in a resume token, as one integer."""
    return int(token["_data"][_TOKEN_TIME], 16)


class ChangeStream:
    """One opened cursor. After any error, and after `close`, it is of no use: open another."""

    def __init__(self, client: Client, session: AsyncIOMotorClientSession, reply: RawBSONDocument) -> None:
        self._admin = client.admin
        self._session = session
        self._cursor: Any = reply["cursor"]
        self._batch: list[RawBSONDocument] | None = self._cursor["firstBatch"]

    @classmethod
    async def open(
        cls, client: Client, sources: Sources, position: RawBSONDocument | Timestamp
    ) -> ChangeStream:
        """Open after a token, or at a clusterTime (inclusive), on every collection that the sources fit.

        So a database or collection that comes later is followed from its first document.
        """
        session = await client.start_session(causal_consistency=False)
        try:
            reply: Any = await client.admin.command(
                _aggregate(sources, position), codec_options=RAW, session=session
            )
        except BaseException:
            await session.end_session()
            raise
        return cls(client, session, reply)

    async def fetch(self) -> Fetched:
        """Return what comes next; no changes after half a second without any."""
        if self._batch is not None:
            changes, self._batch = self._batch, None
            return Fetched(changes, self._cursor["postBatchResumeToken"])
        reply: Any = await self._admin.command(
            {
                "getMore": self._cursor["id"],
                "collection": "$cmd.aggregate",
                "batchSize": _BATCH,
                "maxTimeMS": _AWAIT_MS,
            },
            codec_options=RAW,
            session=self._session,
        )
        self._cursor = reply["cursor"]
        return Fetched(self._cursor["nextBatch"], self._cursor["postBatchResumeToken"])

    async def close(self) -> None:
        """End the session, and the cursor with it."""
        await self._session.end_session()


def _aggregate(sources: Sources, position: RawBSONDocument | Timestamp) -> dict[str, Any]:
    database, names = sources.names()
    watched = [
        {"ns.db": _name(database), "ns.coll": {"$in": [_name(name) for name in names]}},
        {"ns.db": heartbeat.DATABASE, "ns.coll": heartbeat.COLLECTION},
    ]
    at = "startAtOperationTime" if isinstance(position, Timestamp) else "resumeAfter"
    stream = {"allChangesForCluster": True, "fullDocument": "whenAvailable", at: position}
    fields = ("operationType", "clusterTime", "wallTime", "fullDocument", "lsid", "txnNumber")
    project: dict[str, Any] = dict.fromkeys(fields, 1)
    project |= {"ns": {"$concat": ["$ns.db", ".", "$ns.coll"]}, "id": "$documentKey._id"}
    pipeline = [{"$changeStream": stream}, {"$match": {"$or": watched}}, {"$project": project}]
    return {
        "aggregate": 1,
        "pipeline": pipeline,
        "cursor": {"batchSize": 0},
        "readConcern": {"level": "majority"},
    }


def _name(name: str | re.Pattern[str]) -> Any:
    return name if isinstance(name, str) else Regex(f"^{name.pattern}$", "s")

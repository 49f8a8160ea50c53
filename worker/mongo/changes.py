"""The change stream as raw batches: one cursor on the whole deployment, documents undecoded."""

from __future__ import annotations

import re
from typing import Any, NamedTuple

from bson import Timestamp
from bson.raw_bson import RawBSONDocument
from motor.motor_asyncio import AsyncIOMotorClientSession

from worker.mapping.sources import Sources
from worker.mongo import heartbeat, reverse
from worker.mongo.client import RAW, Client

CHANGE_STREAM_HISTORY_LOST = 286
TOO_LARGE = 10334
"""An event whose BSON would be above 16 MB: its document, its id and its token, which holds the id twice."""

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
        cls, client: Client, sources: Sources, position: RawBSONDocument | Timestamp, *, whole: bool = True
    ) -> ChangeStream:
        """Open after a token, or at a clusterTime (inclusive), on every collection that the sources fit.

        So a database or collection that comes later is followed from its first document. Not ``whole``:
        without the documents, so that an event passes that with its document would be too large.
        """
        session = await client.start_session(causal_consistency=False)
        try:
            reply: Any = await client.admin.command(
                _aggregate(sources, position, whole), codec_options=RAW, session=session
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
        """End the cursor, which would stay open for minutes, and the session."""
        try:
            command = {"killCursors": "$cmd.aggregate", "cursors": [self._cursor["id"]]}
            await self._admin.command(command, session=self._session)
        finally:
            await self._session.end_session()


def _aggregate(sources: Sources, position: RawBSONDocument | Timestamp, whole: bool) -> dict[str, Any]:
    watched = [
        _fits(sources, "ns"),
        # What a rename makes ours is not in the stream, so it must be told.
        {"operationType": "rename", **_fits(sources, "to")},
        # The first write of each transaction of the way back is to its ledger.
        {"ns.db": heartbeat.DATABASE, "ns.coll": {"$in": [heartbeat.COLLECTION, reverse.COLLECTION]}},
    ]
    at = "startAtOperationTime" if isinstance(position, Timestamp) else "resumeAfter"
    stream: dict[str, Any] = {"allChangesForCluster": True, at: position}
    fields = ["operationType", "clusterTime", "wallTime", "lsid", "txnNumber", "to"]
    if whole:
        stream["fullDocument"] = "whenAvailable"
        fields.append("fullDocument")
    project: dict[str, Any] = dict.fromkeys(fields, 1)
    project |= {"ns": {"$concat": ["$ns.db", ".", "$ns.coll"]}, "id": "$documentKey._id"}
    pipeline = [{"$changeStream": stream}, {"$match": {"$or": watched}}, {"$project": project}]
    return {
        "aggregate": 1,
        "pipeline": pipeline,
        "cursor": {"batchSize": 0},
        "readConcern": {"level": "majority"},
    }


def _fits(sources: Sources, field: str) -> dict[str, Any]:
    """Return a filter for the namespaces that the sources fit, and few others."""
    database, names = sources.names()
    plain = [name for name in names if isinstance(name, str)]
    patterns = [name for name in names if not isinstance(name, str)]
    if isinstance(database, str) and not patterns:
        return {f"{field}.db": database, f"{field}.coll": {"$in": plain}}
    # As an expression, for MongoDB 6.0 takes three to five times as long to pass over a foreign event when
    # it is a regular expression on the field itself.
    collection = f"${field}.coll"
    named = [{"$in": [collection, {"$literal": plain}]}, *(_match(collection, one) for one in patterns)]
    return {"$expr": {"$and": [_match(f"${field}.db", database), {"$or": named}]}}


def _match(field: str, name: str | re.Pattern[str]) -> dict[str, Any]:
    if isinstance(name, str):
        return {"$eq": [field, {"$literal": name}]}
    return {"$regexMatch": {"input": field, "regex": f"^{name.pattern}$", "options": "s"}}

"""Snapshot reads of a collection in ``_id`` order, chunk by chunk, documents undecoded."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from dataclasses import dataclass
from typing import Any, NamedTuple

from bson import Timestamp
from bson.raw_bson import RawBSONDocument

from topics import Collection, document_key
from worker.mongo.client import RAW, Client


@dataclass(frozen=True, slots=True)
class After:
    """The last ``_id`` of what was read before. A wrapper, because null is an ``_id`` too."""

    id: Any


class Reply(NamedTuple):
    """One reply of the server: documents and the clusterTime that they were read at."""

    documents: list[RawBSONDocument]
    at_cluster_time: Timestamp


async def read_chunk(
    client: Client, collection: Collection, after: After | None, limit: int, not_before: Timestamp
) -> AsyncIterator[Reply]:
    """Yield up to ``limit`` documents after an ``_id``, in its order, in replies of at most 16 MB.

    All of a chunk is read at one clusterTime, which is never below ``not_before`` (C2, C3).
    """
    database = client[collection.database]
    async with await client.start_session(causal_consistency=False) as session:
        while True:
            command = _find(collection.name, after, limit)
            reply = await database.command(command, codec_options=RAW, session=session)
            cursor = reply["cursor"]
            if "atClusterTime" not in cursor:
                return  # there is no such collection: whatever comes into one later, the stream has
            time: Timestamp = cursor["atClusterTime"]
            if time >= not_before:
                break
            await asyncio.sleep(0.05)
        left, documents = limit, list(cursor["firstBatch"])
        if after is not None and documents and _same(documents[0]["_id"], after.id):
            del documents[0]  # `min` is inclusive
        while True:
            documents = documents[:left]
            left -= len(documents)
            yield Reply(documents, time)
            if not cursor["id"] or not left:
                break
            command = {"getMore": cursor["id"], "collection": collection.name, "batchSize": left}
            reply = await database.command(command, codec_options=RAW, session=session)
            cursor = reply["cursor"]
            documents = list(cursor["nextBatch"])


def _find(name: str, after: After | None, limit: int) -> dict[str, Any]:
    command: dict[str, Any] = {
        "find": name,
        "hint": {"_id": 1},
        "sort": {"_id": 1},
        "limit": limit + 1,
        "batchSize": limit + 1,
        "readConcern": {"level": "snapshot"},
    }
    if after is not None:
        # Not $gt, which sees only ids of the same type.
        command["min"] = {"_id": after.id}
    return command


def _same(left: Any, right: Any) -> bool:
    return document_key(left) == document_key(right)


async def estimated_count(client: Client, collection: Collection) -> int:
    """Return about how many documents a collection holds."""
    return await client[collection.database][collection.name].estimated_document_count()

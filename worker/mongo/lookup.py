"""Looks up many documents at once: as they are, never older than their events (C5), or which are absent."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Mapping
from typing import Any

from bson import Timestamp
from bson.raw_bson import RawBSONDocument
from motor.motor_asyncio import AsyncIOMotorClientSession

from topics import Collection, document_key
from worker.mongo.client import RAW, Client


async def look_up(
    client: Client, collection: Collection, ids: Mapping[bytes, Any], not_before: Timestamp
) -> dict[bytes, RawBSONDocument]:
    """Return the documents that exist, by document key; ``ids`` maps document keys to ids."""
    database = client[collection.database]
    found: dict[bytes, RawBSONDocument] = {}
    command: dict[str, Any] = {
        "find": collection.name,
        "filter": {"_id": {"$in": list(ids.values())}},
        "batchSize": len(ids) + 1,
        "readConcern": {"level": "majority", "afterClusterTime": not_before},
    }
    async with await client.start_session(causal_consistency=False) as session:
        reply: Any = await database.command(command, codec_options=RAW, session=session)
        async for document in _documents(database, collection, reply["cursor"], session):
            found[document_key(document["_id"])] = document
    return found


async def absent(
    client: Client, collection: Collection, ids: Mapping[bytes, Any], not_before: Timestamp
) -> tuple[dict[bytes, Any], Timestamp]:
    """Return those of ``ids`` (by document key) that one snapshot does not have, and its clusterTime (C3)."""
    database = client[collection.database]
    command: dict[str, Any] = {
        "find": collection.name,
        "filter": {"_id": {"$in": list(ids.values())}},
        "projection": {"_id": 1},
        "batchSize": len(ids) + 1,
        "readConcern": {"level": "snapshot"},
    }
    async with await client.start_session(causal_consistency=False) as session:
        while True:
            reply: Any = await database.command(command, codec_options=RAW, session=session)
            cursor = reply["cursor"]
            if cursor["atClusterTime"] >= not_before:
                break
            await asyncio.sleep(0.05)
        time: Timestamp = cursor["atClusterTime"]
        documents = _documents(database, collection, cursor, session)
        present = {document_key(document["_id"]) async for document in documents}
    return {key: id_ for key, id_ in ids.items() if key not in present}, time


async def _documents(
    database: Any, collection: Collection, cursor: Any, session: AsyncIOMotorClientSession
) -> AsyncIterator[RawBSONDocument]:
    """Yield every document of a command's cursor: a reply ends at 16 MB, and even ids may be long."""
    batch = "firstBatch"
    while True:
        for document in cursor[batch]:
            yield document
        if not cursor["id"]:
            return
        more = {"getMore": cursor["id"], "collection": collection.name}
        cursor = (await database.command(more, codec_options=RAW, session=session))["cursor"]
        batch = "nextBatch"

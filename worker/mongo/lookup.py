"""Looks up many documents at once: as they are, never older than their events (C5), or which are absent."""

from __future__ import annotations

import asyncio
import struct
from collections.abc import AsyncIterator, Mapping
from typing import Any, NamedTuple

from bson import Timestamp
from bson.raw_bson import RawBSONDocument
from motor.motor_asyncio import AsyncIOMotorClientSession

from topics import Collection, document_key
from worker.mongo import heartbeat
from worker.mongo.client import RAW, Client

_WITHIN_MS = 60_000


class Found(NamedTuple):
    """Documents by document key, and the ids that are yet to be asked for."""

    documents: dict[bytes, RawBSONDocument]
    left: dict[bytes, Any]


async def look_up(
    client: Client, collection: Collection, ids: Mapping[bytes, Any], not_before: Timestamp
) -> Found:
    """Return the documents that exist; ``ids`` maps document keys to ids.

    Only as many as one reply holds, which is 16 MB and at least one document: large ones would fill memory.
    """
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
        cursor, batch = reply["cursor"], "firstBatch"
        while True:
            for document in cursor[batch]:
                if (key := document_key(document["_id"])) in ids:  # a collation finds others too
                    found[key] = document
            if not cursor["id"]:
                return Found(found, {})
            if found:
                break
            more = {"getMore": cursor["id"], "collection": collection.name}
            reply = await database.command(more, codec_options=RAW, session=session)
            cursor, batch = reply["cursor"], "nextBatch"
        await database.command({"killCursors": collection.name, "cursors": [cursor["id"]]}, session=session)
    return Found(found, {key: id_ for key, id_ in ids.items() if key not in found})


class Shown(NamedTuple):
    """What snapshots show of ids, all by document key, and the clusterTime of that."""

    documents: dict[bytes, RawBSONDocument]
    absent: dict[bytes, Any]
    left: dict[bytes, Any]
    """Ids that are yet to be asked for."""
    at: Timestamp


async def in_snapshot(
    client: Client, collection: Collection, ids: Mapping[bytes, Any], not_before: Timestamp
) -> Shown:
    """Return documents and absences at one clusterTime, never below ``not_before`` (C2, C3).

    Only as many documents as one reply holds, which is 16 MB and at least one, as `look_up` does; absences
    are told with the last of them.
    """
    database = client[collection.database]
    found: dict[bytes, RawBSONDocument] = {}
    command: dict[str, Any] = {
        "find": collection.name,
        "filter": {"_id": {"$in": list(ids.values())}},
        "batchSize": len(ids) + 1,
        "maxTimeMS": _WITHIN_MS,
        "readConcern": {"level": "snapshot", "afterClusterTime": not_before},
    }
    async with await client.start_session(causal_consistency=False) as session:
        reply: Any = await database.command(command, codec_options=RAW, session=session)
        cursor, batch = reply["cursor"], "firstBatch"
        if "atClusterTime" not in cursor:
            # No such collection, which no snapshot says; see `absent`. What comes into one is newer.
            await _majority(client, reply["operationTime"])
            return Shown({}, dict(ids), {}, not_before)
        at: Timestamp = cursor["atClusterTime"]
        while True:
            for document in cursor[batch]:
                if (key := document_key(document["_id"])) in ids:  # a collation finds others too
                    found[key] = document
            if not cursor["id"]:
                return Shown(found, {key: id_ for key, id_ in ids.items() if key not in found}, {}, at)
            if found:
                break
            more = {"getMore": cursor["id"], "collection": collection.name}
            reply = await database.command(more, codec_options=RAW, session=session)
            cursor, batch = reply["cursor"], "nextBatch"
        await database.command({"killCursors": collection.name, "cursors": [cursor["id"]]}, session=session)
    return Shown(found, {}, {key: id_ for key, id_ in ids.items() if key not in found}, at)


async def absent(
    client: Client, collection: Collection, ids: Mapping[bytes, Any], not_before: Timestamp
) -> tuple[dict[bytes, Any], Timestamp]:
    """Return those of ``ids`` (by document key) that one snapshot does not have, and its clusterTime (C3)."""
    database = client[collection.database]
    before: Timestamp = (await client.admin.command("ping"))["operationTime"]
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
            if "atClusterTime" not in cursor:
                # No such collection, which no snapshot says. What came into one after `before` is newer than
                # that. Its drop must not be one that a failover takes back.
                await _majority(client, reply["operationTime"])
                return dict(ids), before
            if cursor["atClusterTime"] >= not_before:
                break
            await asyncio.sleep(0.05)
        time: Timestamp = cursor["atClusterTime"]
        documents = _documents(database, collection, cursor, session)
        present = {_key(document, ids) async for document in documents}
    return {key: id_ for key, id_ in ids.items() if key not in present}, time


_HEAD = struct.Struct("<i")
_NAME = b"_id\0"


def _key(document: RawBSONDocument, ids: Mapping[bytes, Any]) -> bytes:
    """Return the key of a document that has its `_id` alone; one of ``ids`` need not be decoded."""
    raw = document.raw
    if raw[5:9] == _NAME:
        # The same element under a key's name, which is empty. Of a number it may not be the canonical one.
        key = _HEAD.pack(len(raw) - 3) + raw[4:5] + raw[8:]
        if key in ids:
            return key
    return document_key(document["_id"])


async def _majority(client: Client, time: Timestamp) -> None:
    """Return when all up to a clusterTime is majority-committed."""
    concern = {"level": "majority", "afterClusterTime": time}
    command = {"find": heartbeat.COLLECTION, "limit": 1, "singleBatch": True, "readConcern": concern}
    await client[heartbeat.DATABASE].command(command)


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

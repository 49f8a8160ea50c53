"""What is ours in MongoDB, counted and removed: `crossfade finish`."""

from __future__ import annotations

import re
from collections.abc import Callable, Container
from typing import Any
from uuid import UUID

from pymongo import WriteConcern

from worker.mapping import Mapping, row_id
from worker.mongo import fence_documents, fence_lock, heartbeat, reverse, validators
from worker.mongo.client import Client, told_clearly
from worker.mongo.collections import fitting

_TOLD = 3
Mapped = Callable[[str], bool]
"""Whether a namespace is, or was, of the mapping."""


async def _filters(client: Client, mapped: Mapped, migration: str) -> dict[str, dict[str, Any]]:
    """Return which documents of our collections are of one migration: others may share the database."""
    database = client[heartbeat.DATABASE]
    written = await database[reverse.COLLECTION].distinct("_id.ns")
    ours = _heartbeats(migration)
    shared = await database[heartbeat.COLLECTION].find_one({"_id": {"$not": ours["_id"]}}) is not None
    return {
        heartbeat.COLLECTION: ours,
        fence_documents.COLLECTION: {"_id.migration": migration},
        fence_lock.LOCKS: {"_id": migration},
        validators.SET_ASIDE: {"_id.migration": migration},
        reverse.COLLECTION: {"_id.ns": {"$in": list(filter(mapped, written))}},
        # They do not say whose they are, and go by themselves within the hour.
        reverse.BARRIERS: {"_id": {"$in": []}} if shared else {},
    }


def _heartbeats(migration: str) -> dict[str, Any]:
    return {"_id": {"$regex": rf"^{re.escape(migration)}( .*)?$"}}


async def known(client: Client, migration: str) -> bool:
    """Whether a migration of this name has ever begun here, and was not finished."""
    with told_clearly():
        beats = client[heartbeat.DATABASE][heartbeat.COLLECTION]
        return await beats.count_documents(_heartbeats(migration), limit=1) > 0


async def strangers(client: Client, mapping: Mapping, tenants: Container[UUID]) -> list[str]:
    """Return a few documents that are tenants themselves, and none of these.

    Looked at are collections whose tenant is the document's own id. Apply never saw such a one, or could not
    take it: nothing of it is in PostgreSQL.
    """
    found: list[str] = []
    with told_clearly():
        for name, one in mapping.collections.items():
            if one.tenant is None or one.tenant.path != "_id":
                continue
            for real in await fitting(client, mapping.sources(), mapping.logical(name)):
                async for document in client[real.database][real.name].find({}, {"_id": 1}):
                    if row_id(document["_id"]) not in tenants and len(found) < _TOLD:
                        found.append(f"{real} {document['_id']}")
    return found


async def ours(client: Client, mapped: Mapped, migration: str) -> dict[str, int]:
    """Return how many documents of this migration each collection of ours has."""
    found: dict[str, int] = {}
    with told_clearly():
        there = set(await client[heartbeat.DATABASE].list_collection_names())
        for name, wanted in (await _filters(client, mapped, migration)).items():
            if name in there:
                count = await client[heartbeat.DATABASE][name].count_documents(wanted)
                found[f"{heartbeat.DATABASE}.{name}"] = count
    return found


async def remove(client: Client, mapped: Mapped, migration: str) -> None:
    """Remove them, and the collections that are empty then. Done again, it does nothing."""
    database = client.get_database(heartbeat.DATABASE, write_concern=WriteConcern("majority"))
    with told_clearly():
        there = set(await database.list_collection_names())
        for name, wanted in (await _filters(client, mapped, migration)).items():
            if name not in there:
                continue
            await database[name].delete_many(wanted)
            if await database[name].find_one({}) is None:
                await database.drop_collection(name)

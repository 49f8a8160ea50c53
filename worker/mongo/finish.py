"""What is ours in MongoDB, counted and removed: `crossfade finish`."""

from __future__ import annotations

from typing import Any

from pymongo import WriteConcern

from worker.mapping import Mapping
from worker.mongo import fence_documents, fence_lock, heartbeat, reverse, validators
from worker.mongo.client import Client, told_clearly


def _filters(mapping: Mapping, migration: str) -> dict[str, dict[str, Any]]:
    """Return which documents of our collections are of one migration: others may share the database."""
    namespaces = [str(mapping.logical(name)) for name in mapping.collections]
    return {
        heartbeat.COLLECTION: {"_id": {"$regex": f"^{migration}( .*)?$"}},
        fence_documents.COLLECTION: {"_id.migration": migration},
        fence_lock.LOCKS: {"_id": migration},
        validators.SET_ASIDE: {"_id.migration": migration},
        reverse.COLLECTION: {"_id.ns": {"$in": namespaces}},
        reverse.BARRIERS: {},
    }


async def ours(client: Client, mapping: Mapping, migration: str) -> dict[str, int]:
    """Return how many documents of this migration each collection of ours has."""
    found: dict[str, int] = {}
    with told_clearly():
        there = set(await client[heartbeat.DATABASE].list_collection_names())
        for name, wanted in _filters(mapping, migration).items():
            if name in there:
                count = await client[heartbeat.DATABASE][name].count_documents(wanted)
                found[f"{heartbeat.DATABASE}.{name}"] = count
    return found


async def remove(client: Client, mapping: Mapping, migration: str) -> None:
    """Remove them, and the collections that are empty then. Done again, it does nothing."""
    database = client.get_database(heartbeat.DATABASE, write_concern=WriteConcern("majority"))
    with told_clearly():
        there = set(await database.list_collection_names())
        for name, wanted in _filters(mapping, migration).items():
            if name not in there:
                continue
            await database[name].delete_many(wanted)
            if await database[name].find_one({}) is None:
                await database.drop_collection(name)

"""Snapshot reads of a collection in ``_id`` order, reply by reply, documents undecoded."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple

from bson import Timestamp
from bson.raw_bson import RawBSONDocument

from topics import Collection, document_key
from worker.mongo.client import RAW, Client
from worker.mongo.preference import ReadPreference

_WITHIN_MS = 60_000  # also bounds the wait for a secondary that lags


@dataclass(frozen=True, slots=True)
class After:
    """The last ``_id`` of what was read before. A wrapper, because null is an ``_id`` too."""

    id: Any


class Reply(NamedTuple):
    """One reply of the server: documents and the clusterTime that they were read at."""

    documents: list[RawBSONDocument]
    at_cluster_time: Timestamp


async def read_chunk(
    client: Client,
    collection: Collection,
    after: After | None,
    limit: int,
    not_before: Timestamp,
    preference: ReadPreference,
    only: Mapping[str, Any] | None = None,
) -> Reply:
    """Return the documents after an ``_id``, in its order: up to ``limit``, and what 16 MB hold.

    None: there are no more. All are read at one clusterTime, which is never below ``not_before`` (C2, C3): a
    secondary that has not come so far lets the read wait. No cursor stays open, so that each read is free to
    go to another member. ``only``: a filter, with which the whole collection is still looked through.
    """
    command = _find(collection.name, after, limit, not_before)
    if only is not None:
        command["filter"] = only
    database = client[collection.database]
    reply = await database.command(command, codec_options=RAW, read_preference=preference)
    cursor = reply["cursor"]
    documents = list(cursor["firstBatch"])
    if after is not None and documents and _same(documents[0]["_id"], after.id):
        del documents[0]  # `min` is inclusive
    # Of a collection that is not there the server tells no time.
    return Reply(documents[:limit], cursor.get("atClusterTime", not_before))


def _find(name: str, after: After | None, limit: int, not_before: Timestamp) -> dict[str, Any]:
    command: dict[str, Any] = {
        "find": name,
        "hint": {"_id": 1},
        "sort": {"_id": 1},
        "limit": limit + 1,
        "batchSize": limit + 1,
        "singleBatch": True,
        "maxTimeMS": _WITHIN_MS,
        "readConcern": {"level": "snapshot", "afterClusterTime": not_before},
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

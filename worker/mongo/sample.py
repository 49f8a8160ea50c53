"""Reads what a database holds, bounded: its collections with options and indexes, and samples of documents.

Secondaries may answer: nothing here decides what is copied.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass
from typing import Any

import bson
from bson.binary import UuidRepresentation
from bson.codec_options import CodecOptions, DatetimeConversion
from bson.errors import BSONError
from motor.motor_asyncio import AsyncIOMotorCollection
from pymongo.errors import ExecutionTimeout, OperationFailure, PyMongoError
from pymongo.read_preferences import ReadPreference

from worker.errors import ServiceUnavailable
from worker.mongo.client import RAW, Client, describe

# As the events' documents are decoded: dates that Python cannot hold do not fail their document.
_CODEC: CodecOptions[dict[str, Any]] = CodecOptions(
    tz_aware=True,
    uuid_representation=UuidRepresentation.STANDARD,
    datetime_conversion=DatetimeConversion.DATETIME_AUTO,
)
_BATCH = 500
_MAX_TIME_MS = 60_000
_UNSUPPORTED_ON_VIEW = 166  # CommandNotSupportedOnView


@dataclass(frozen=True, slots=True)
class CollectionInfo:
    """A collection as listCollections tells it; ``kind`` is collection, view or timeseries."""

    name: str
    kind: str
    options: dict[str, Any]
    indexes: tuple[dict[str, Any], ...]
    count: int


@dataclass(slots=True)
class Taken:
    """What a sample turned out to be."""

    documents: int = 0
    undecodable: int = 0
    whole: bool = False
    cut_short: bool = False  # the time for it was over


async def database_names(client: Client) -> list[str]:
    """Return the names of the databases that the user may see."""
    try:
        return sorted(await client.list_database_names())
    except PyMongoError as error:
        raise _refused("does not list its databases", error) from None


async def collections(client: Client, database: str) -> list[CollectionInfo]:
    """Return a database's collections by name, with options and indexes; ours and the server's left out."""
    found: list[CollectionInfo] = []
    try:
        cursor = await client[database].list_collections()
        described = [one async for one in cursor if not one["name"].startswith("system.")]
        for one in sorted(described, key=lambda one: one["name"]):
            name, kind = one["name"], one.get("type", "collection")
            plain = kind == "collection"
            found.append(
                CollectionInfo(
                    name,
                    kind,
                    dict(one.get("options") or {}),
                    tuple(await _indexes(client, database, name)) if plain else (),
                    await client[database][name].estimated_document_count() if plain else 0,
                )
            )
    except PyMongoError as error:
        raise _refused(f"does not tell the collections of {database}", error) from None
    return found


async def _indexes(client: Client, database: str, name: str) -> list[dict[str, Any]]:
    try:
        return [dict(one) async for one in client[database][name].list_indexes()]
    except OperationFailure as error:
        if error.code == _UNSUPPORTED_ON_VIEW:
            return []
        raise


async def sample(
    client: Client, database: str, name: str, size: int | None, taken: Taken
) -> AsyncIterator[dict[str, Any]]:
    """Yield ``size`` random documents, or all where there are no more or ``size`` is None.

    ``taken`` counts as it goes. A document that cannot be decoded is counted and passed over. A random sample
    may take a minute of the server's time; what it gave by then stays. It may hold a document twice.
    """
    collection = _raw(client, database, name)
    try:
        count = await collection.estimated_document_count()
        taken.whole = size is None or count <= size
        if taken.whole:
            # The count is an estimate: one document more tells that it was wrong.
            bound = {} if size is None else {"limit": size + 1, "max_time_ms": _MAX_TIME_MS}
            cursor = collection.find(batch_size=_BATCH, **bound)
        else:
            cursor = collection.aggregate(
                [{"$sample": {"size": size}}],
                allowDiskUse=True,
                batchSize=_BATCH,
                maxTimeMS=_MAX_TIME_MS,
            )
        async for raw in cursor:
            if size is not None and taken.documents == size:
                taken.whole = False
                break
            taken.documents += 1
            try:
                document = bson.decode(raw.raw, codec_options=_CODEC)
            except (BSONError, ValueError, TypeError, OverflowError, RecursionError):
                taken.undecodable += 1
                continue
            yield document
    except ExecutionTimeout:
        taken.cut_short = True
    except PyMongoError as error:
        raise _refused(f"does not give documents of {database}.{name}", error) from None


async def count_existing(client: Client, database: str, name: str, ids: Sequence[Any]) -> int:
    """Return how many of these ids a collection has."""
    collection = _raw(client, database, name)
    cursor = collection.find({"_id": {"$in": list(ids)}}, {"_id": 1}, max_time_ms=_MAX_TIME_MS)
    try:
        return len([None async for _ in cursor])
    except PyMongoError as error:
        raise _refused(f"does not look up ids in {database}.{name}", error) from None


def _raw(client: Client, database: str, name: str) -> AsyncIOMotorCollection[Any]:
    """Return a collection whose documents stay undecoded."""
    return client[database].get_collection(
        name,
        codec_options=RAW,  # pyright: ignore[reportArgumentType]
        read_preference=ReadPreference.SECONDARY_PREFERRED,
    )


def _refused(what: str, error: PyMongoError) -> ServiceUnavailable:
    return ServiceUnavailable(
        f"MongoDB {what} ({describe(error)})", remedy="see that the user of CROSSFADE_MONGO_URI may read it"
    )

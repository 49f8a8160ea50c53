"""What the way back writes into MongoDB, and what it remembers there of each document.

`crossfade.reverse` has the greatest version that was written of each document, for ever: its write is the
first one of each transaction, so what comes again is harmless, and the change stream tells these transactions
from others (they are echoes). `crossfade.reverse_barrier` has the barriers that arrived.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from typing import Any, NamedTuple
from uuid import UUID

from bson import Binary, Int64, MaxKey
from bson.codec_options import CodecOptions
from bson.errors import InvalidDocument
from motor.motor_asyncio import AsyncIOMotorClientSession
from pymongo import DeleteOne, InsertOne, ReplaceOne, UpdateOne
from pymongo.errors import BulkWriteError, CollectionInvalid, InvalidOperation, OperationFailure, PyMongoError
from pymongo.read_concern import ReadConcern
from pymongo.write_concern import WriteConcern

from topics import Collection, document_key
from worker.errors import Fatal, Transient
from worker.mapping.difference import NotByPath, difference, merged
from worker.mongo import heartbeat
from worker.mongo.client import RAW, REFUSED, Client, describe, told_clearly, transient

COLLECTION = "reverse"
NAMESPACE = f"{heartbeat.DATABASE}.{COLLECTION}"
BARRIERS = "reverse_barrier"
BARRIERS_KEPT = 3600  # seconds; whoever asked for one waits for seconds
_MAJORITY = WriteConcern("majority")
_DECODED: CodecOptions[dict[str, Any]] = RAW.with_options(document_class=dict)  # pyright: ignore
_PASSING = ("TransientTransactionError", "UnknownTransactionCommitResult")
_TOO_LARGE = frozenset({10334, 17280, 17419, 17420})
_OF_ALL = REFUSED | {8000, 14031}
"""Codes by which MongoDB takes nobody's document: it may not be written there, or there is no room."""
_OF_ONE = frozenset({2, 9, 14, 15, 16, 28, 52, 56, 57, 121})
"""Codes of a whole command that are about a document in it."""


class Write(NamedTuple):
    """One document as PostgreSQL has it, or its absence, in a real collection.

    ``visible`` returns a document without what the mapping ignores: that stays as it is.
    """

    namespace: str
    id: Any
    key: bytes
    version: int
    tenant: UUID | None
    document: dict[str, Any] | None
    visible: Callable[[dict[str, Any]], dict[str, Any]]


class Written(NamedTuple):
    """How many documents were changed, were as they should be, and were newer already."""

    changed: int
    equal: int
    superseded: int


class Refused(Exception):
    """MongoDB does not take a document, whoever writes it; the text says why."""


async def prepare(client: Client) -> None:
    """Make our collections, where they are missing. Errors as those of `told_clearly`."""
    with told_clearly():
        await _prepare(client)


async def _prepare(client: Client) -> None:
    there = await client[heartbeat.DATABASE].list_collection_names()
    for name in (COLLECTION, BARRIERS):
        if name not in there:
            with suppress(CollectionInvalid):  # another process made it in this moment
                await client[heartbeat.DATABASE].create_collection(name)
    ledger = client[heartbeat.DATABASE][COLLECTION]
    await ledger.create_index("version")
    await ledger.create_index([("tenant", 1), ("version", 1)])
    await client[heartbeat.DATABASE][BARRIERS].create_index("at", expireAfterSeconds=BARRIERS_KEPT)


async def greatest(client: Client) -> int:
    """Return the greatest version that was ever written; 0: none. Errors as those of `told_clearly`."""
    ledger = client[heartbeat.DATABASE].get_collection(COLLECTION, read_concern=ReadConcern("majority"))
    with told_clearly():
        newest = await ledger.find_one({}, {"version": 1}, sort=[("version", -1)])
    return int(newest["version"]) if newest else 0


class Known(NamedTuple):
    """A document that the way back has written: its real collection, its key, the version."""

    namespace: str
    key: bytes
    version: int


async def written(client: Client, tenant: UUID, above: int) -> AsyncIterator[Known]:
    """Yield what the way back has written of a tenant with versions above one.

    Errors as those of `told_clearly`.
    """
    ledger = client[heartbeat.DATABASE].get_collection(COLLECTION, read_concern=ReadConcern("majority"))
    with told_clearly():
        async for one in ledger.find({"tenant": tenant, "version": {"$gt": above}}):
            yield Known(one["_id"]["ns"], bytes(one["_id"]["key"]), int(one["version"]))


async def versions(client: Client, documents: Sequence[tuple[str, bytes]]) -> dict[tuple[str, bytes], int]:
    """Return the greatest version that was written of each of these, by real collection and key.

    Errors as those of `told_clearly`.
    """
    ledger = client[heartbeat.DATABASE].get_collection(COLLECTION, read_concern=ReadConcern("majority"))
    with told_clearly():
        return await _versions(ledger, [{"ns": name, "key": Binary(key)} for name, key in documents])


async def _versions(
    ledger: Any, names: Sequence[Mapping[str, Any]], session: AsyncIOMotorClientSession | None = None
) -> dict[tuple[str, bytes], int]:
    known: dict[tuple[str, bytes], int] = {}
    async for row in ledger.find({"_id": {"$in": list(names)}}, {"version": 1}, session=session):
        known[(row["_id"]["ns"], bytes(row["_id"]["key"]))] = int(row["version"])
    return known


async def write(client: Client, writes: Sequence[Write]) -> Written:
    """Write documents in one transaction, which a majority has; one version of each at most.

    `Refused` where MongoDB does not take one of them, and then none is written. `Transient` where the same
    may succeed later, `Fatal` where a person must act.
    """
    with _told():
        async with await client.start_session() as session:
            try:
                return await session.with_transaction(
                    lambda inner: _write(client, inner, writes),
                    read_concern=ReadConcern("snapshot"),
                    write_concern=_MAJORITY,
                )
            except (OperationFailure, InvalidDocument, OverflowError) as error:
                if (why := _refusal(error)) is not None:
                    raise Refused(why) from None
                raise


@contextmanager
def _told() -> Iterator[None]:
    try:
        yield
    except PyMongoError as error:
        # A closed client's word has such a label too: whoever waits for it to pass waits for ever.
        closed = isinstance(error, InvalidOperation)
        if not closed and (transient(error) or any(map(error.has_error_label, _PASSING))):
            raise Transient(f"MongoDB does not take the way back ({describe(error)})") from None
        raise Fatal(
            f"MongoDB refuses the way back ({describe(error)})",
            remedy="let the user of CROSSFADE_MONGO_URI write the mapped collections, bypassing their "
            "validation, and database crossfade",
        ) from None


async def _write(client: Client, session: AsyncIOMotorClientSession, writes: Sequence[Write]) -> Written:
    ledger = client[heartbeat.DATABASE][COLLECTION]
    names = {(one.namespace, one.key): {"ns": one.namespace, "key": Binary(one.key)} for one in writes}
    known = await _versions(ledger, list(names.values()), session)
    newer = [one for one in writes if one.version > known.get((one.namespace, one.key), -1)]
    if not newer:
        return Written(0, 0, len(writes))
    # The first write of the transaction: by it the publisher of the change stream knows all that follow.
    await ledger.bulk_write(
        [
            ReplaceOne(
                {"_id": names[(one.namespace, one.key)]},
                {"version": Int64(one.version), "tenant": one.tenant},
                upsert=True,
            )
            for one in newer
        ],
        session=session,
    )
    by_namespace: dict[str, list[Write]] = {}
    for one in newer:
        by_namespace.setdefault(one.namespace, []).append(one)
    changed = 0
    for namespace, some in by_namespace.items():
        changed += await _documents(client, session, Collection.parse(namespace), some)
    return Written(changed, len(newer) - changed, len(writes) - len(newer))


async def _documents(
    client: Client, session: AsyncIOMotorClientSession, place: Collection, writes: Sequence[Write]
) -> int:
    """Write documents of one real collection; return how many were others."""
    collection = client[place.database].get_collection(place.name, codec_options=_DECODED)
    present: dict[bytes, dict[str, Any]] = {}
    async for document in collection.find({"_id": {"$in": [one.id for one in writes]}}, session=session):
        present[document_key(document["_id"])] = document
    operations: list[Any] = []
    changed = 0
    for one in writes:
        steps = _operations(one, present)
        operations += steps
        changed += bool(steps)
    if operations:
        await collection.bulk_write(operations, session=session, bypass_document_validation=True)
    return changed


def _operations(one: Write, present: Mapping[bytes, dict[str, Any]]) -> list[Any]:
    now = present.get(one.key)
    if one.document is None:
        return [] if now is None else [DeleteOne({"_id": now["_id"]})]
    if now is None:
        return [InsertOne(one.document)]
    wanted = {**one.document, "_id": now["_id"]}  # which may be as equal as 1 and 1.0 are
    seen = one.visible(now)
    try:
        paths = difference(seen, wanted)
    except NotByPath:
        whole = merged(now, seen, wanted)
        return [DeleteOne({"_id": now["_id"]}), InsertOne(whole)]
    change: dict[str, Any] = {}
    if paths.set:
        change["$set"] = paths.set
    if paths.unset:
        change["$unset"] = dict.fromkeys(paths.unset, "")
    return [UpdateOne({"_id": now["_id"]}, change)] if change else []


def _refusal(error: Exception) -> str | None:
    """Return why MongoDB will not have a document; None where it is not about the document."""
    if not isinstance(error, OperationFailure):
        return f"it is no document of MongoDB's ({type(error).__name__})"
    if transient(error) or any(map(error.has_error_label, _PASSING)):
        return None
    code, of_one = error.code, error.code in _OF_ONE
    if isinstance(error, BulkWriteError):
        found: list[dict[str, Any]] = (error.details or {}).get("writeErrors") or []
        code = found[0].get("code") if found else None
        # What an index cannot take, and whatever else may be wrong with one document.
        of_one = bool(found) and code not in _OF_ALL
    if code in (11000, 11001):
        return "another document holds a value that is unique"
    if code in _TOO_LARGE:
        return "it is too large for MongoDB"
    return f"MongoDB refuses it ({describe(error)}, code {code})" if of_one else None


class Arrival(NamedTuple):
    """A barrier in one partition of the reverse topics; ``of``: in how many it is."""

    barrier: UUID
    topic: str
    partition: int
    of: int


async def arrive(client: Client, arrivals: Sequence[Arrival]) -> None:
    """Note that barriers, and so all before them in their partitions, have arrived; a majority has it then.

    `Transient` and `Fatal` as `write`.
    """
    barriers = client[heartbeat.DATABASE].get_collection(BARRIERS, write_concern=_MAJORITY)
    with _told():
        await barriers.bulk_write(
            [
                UpdateOne(
                    {"_id": {"barrier": one.barrier, "topic": one.topic, "partition": one.partition}},
                    {"$set": {"partitions": one.of}, "$currentDate": {"at": True}},
                    upsert=True,
                )
                for one in arrivals
            ],
            ordered=False,
        )


async def arrived(client: Client, barrier: UUID) -> bool:
    """Whether MongoDB has all that lay before a barrier in every partition of the reverse topics.

    Errors as those of `told_clearly`.
    """
    barriers = client[heartbeat.DATABASE].get_collection(BARRIERS, read_concern=ReadConcern("majority"))
    first, behind = {"barrier": barrier}, {"barrier": barrier, "topic": MaxKey()}  # a range of the index
    with told_clearly():
        found = await barriers.find({"_id": {"$gte": first, "$lt": behind}}).to_list(None)
    return bool(found) and len(found) >= max(one["partitions"] for one in found)

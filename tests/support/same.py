"""Whether documents are the same, and whether those that PostgreSQL holds are MongoDB's."""

from __future__ import annotations

import struct
from typing import Any

import asyncpg
from bson import Code, CodecOptions, DBRef
from bson.binary import UuidRepresentation
from bson.codec_options import DatetimeConversion
from motor.motor_asyncio import AsyncIOMotorClient

from worker.mapping import Mapping, Plans, rebuilder
from worker.mapping.ignored import without_ignored
from worker.postgres.documents import TargetDocuments

CODEC: CodecOptions[dict[str, Any]] = CodecOptions(
    tz_aware=True,
    uuid_representation=UuidRepresentation.STANDARD,
    datetime_conversion=DatetimeConversion.DATETIME_AUTO,
)
_AT_ONCE = 500


def told_apart(value: Any) -> Any:
    """Return a value that equals another's only where the documents are the same but for integers' width."""
    match value:
        case bool() | None:
            return value
        case int():
            return ("int", int(value))
        case float():
            return ("float", struct.pack("<d", value))
        case dict():
            return {name: told_apart(item) for name, item in value.items()}
        case list():
            return [told_apart(item) for item in value]
        case DBRef():
            return ("DBRef", told_apart(dict(value.as_doc())))
        case Code():
            return ("Code", str(value), told_apart(value.scope and dict(value.scope)))
        case _:
            return (type(value).__name__, value)


def whole(found: Any) -> dict[str, Any]:
    """Return a document as it is: the driver takes one with the fields $ref and $id for a DBRef."""
    return dict(found.as_doc()) if isinstance(found, DBRef) else found


def assert_same(back: Any, document: Any) -> None:
    assert told_apart(back) == told_apart(document)


async def unequal(
    client: AsyncIOMotorClient[Any], connection: asyncpg.Connection, mapping: Mapping
) -> list[tuple[str, Any, str]]:
    """Rebuild every document from its rows; return collection, id and fields of those that differ.

    A document that stands as a dead letter is expected to be missing or older, and is left out.
    """
    plans, differences = Plans(mapping), list[tuple[str, Any, str]]()
    dead = {
        (row[0], row[1])
        for row in await connection.fetch(
            "SELECT namespace, row_id FROM crossfade.dead_letter WHERE state IN ('dead', 'parked')"
        )
    }
    for database in await client.list_database_names():
        for name in await client[database].list_collection_names():
            if planned := plans.find(f"{database}.{name}"):
                one = mapping.collections[planned.name]
                tenant = mapping.sources().find(f"{database}.{name}").tenant  # pyright: ignore
                documents = TargetDocuments(planned.plan.tables, rebuilder(mapping, planned.name, tenant))
                collection = client[database].get_collection(name, codec_options=CODEC)
                cursor = collection.find(batch_size=_AT_ONCE)
                while some := list(map(whole, await cursor.to_list(_AT_ONCE))):
                    ids = {planned.plan.row_id(document["_id"]): document for document in some}
                    held = await documents.read(connection, list(ids))
                    for row_id, document in ids.items():
                        if (f"{database}.{name}", row_id) not in dead:
                            found = _different(held.get(row_id), without_ignored(one, document))
                            if found:
                                differences.append((f"{database}.{name}", document["_id"], found))
    return differences


def _different(held: dict[str, Any] | None, document: dict[str, Any]) -> str:
    if held is None:
        return "missing"
    names = [*document, *(name for name in held if name not in document)]
    nothing = object()
    return ", ".join(
        name
        for name in names
        if told_apart(held.get(name, nothing)) != told_apart(document.get(name, nothing))
    )

"""The look-up that decides what the removal deletes: it must see every document that is there."""

from __future__ import annotations

from uuid import uuid4

from bson import Decimal128, Int64, ObjectId, Timestamp

from topics import Collection, document_key
from worker.embedded import Services
from worker.mongo.client import connect
from worker.mongo.lookup import absent, in_snapshot
from worker.publish.removal import slices


async def test_ids_that_fill_more_than_one_reply_are_not_taken_for_absent(services: Services) -> None:
    name = f"absent_{uuid4().hex[:10]}"
    ids = [f"{number:04}" + "x" * 16_774 for number in range(1000)]
    client = await connect(services.mongo_uri, "test")
    try:
        await client[name]["c"].insert_many([{"_id": one} for one in ids[:-1]])
        wanted = {document_key(one): one for one in ids}
        missing, _ = await absent(client, Collection(name, "c"), wanted, Timestamp(1, 1))
        assert list(missing.values()) == ids[-1:]
    finally:
        await client.drop_database(name)
        client.close()


async def test_an_id_of_any_type_is_found_in_whatever_type_it_is_stored(services: Services) -> None:
    name = f"absent_{uuid4().hex[:10]}"
    there = [
        1.0,
        Int64(2),
        Decimal128("3"),
        4,
        0.5,
        "5",
        None,
        True,
        b"6",
        uuid4(),
        ObjectId(),
        {"a": 1, "b": 2.0},
    ]
    asked = [1, 2, 3, 4, *there[4:-1], {"a": 1.0, "b": 2}]
    others = [8, 9.5, "1", False, b"5", uuid4(), ObjectId(), {"b": 2, "a": 1}]
    client = await connect(services.mongo_uri, "test")
    try:
        await client[name]["c"].insert_many([{"_id": one} for one in there])
        wanted = {document_key(one): one for one in [*asked, *others]}
        missing, _ = await absent(client, Collection(name, "c"), wanted, Timestamp(1, 1))
        assert list(missing.values()) == others
    finally:
        await client.drop_database(name)
        client.close()


async def test_a_snapshot_tells_absence_only_when_it_has_told_every_document(services: Services) -> None:
    name = f"absent_{uuid4().hex[:10]}"
    client = await connect(services.mongo_uri, "test")
    try:
        await client[name]["c"].insert_many([{"_id": n, "text": "x" * 9_000_000} for n in range(3)])
        left = {document_key(one): one for one in range(4)}
        found, asked = list[int](), 0
        while left:
            shown = await in_snapshot(client, Collection(name, "c"), left, Timestamp(1, 1))
            found += [document["_id"] for document in shown.documents.values()]
            assert list(shown.absent.values()) == ([] if shown.left else [3])
            left, asked = shown.left, asked + 1
        assert sorted(found) == [0, 1, 2] and asked > 1
    finally:
        await client.drop_database(name)
        client.close()


def test_ids_are_looked_up_in_parts_that_a_command_holds() -> None:
    ids = {b"k" * size: size for size in (3, 4, 20, 5, 6)}
    assert [[*part.values()] for part in slices(ids, 10)] == [[3, 4], [20], [5], [6]]
    assert list(slices({})) == []

"""Documents sent anew: as a snapshot has them, newer than all that was applied, bounded in memory."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from bson import ObjectId

from tests.support.things import large, things, until_equal
from tests.support.world import World, settings
from topics import Collection, Operation, Source, document_key
from worker.embedded import Services
from worker.errors import ServiceUnavailable, UsageError
from worker.mapping import row_id
from worker.repair.send import Report, opened

MB = 1024 * 1024


async def send(w: World, *ids: Any, name: str = "a") -> Report:
    async with opened(settings(w), w.mapping, "test") as sender:
        return await sender.send({Collection(w.name, name): ids})


async def test_what_was_sent_mends_rows_and_takes_away_what_mongodb_does_not_have(
    services: Services, tmp_path: Path
) -> None:
    async with things(services, tmp_path, "a") as w:
        ids: list[Any] = [1, "one", ObjectId(), {"of": [1, 2]}, None]
        # Four documents of 6 MB: more than one reply.
        documents = [{"_id": id_, "n": 1} for id_ in ids] + [large(n, 6 * MB) for n in range(10, 14)]
        await w.mongo["a"].insert_many([*documents, {"_id": "gone"}])
        await w.start("publish", "publish")
        await w.start("apply", "apply")
        await until_equal(w, "a")
        connection = await w.connect()
        await connection.execute("UPDATE a SET n = 2, text = 'wrong'")
        await connection.execute("DELETE FROM a WHERE id = $1", row_id("one"))
        await connection.close()
        await w.stop("publish")
        await w.mongo["a"].delete_one({"_id": "gone"})
        wanted = [document["_id"] for document in documents]
        report = await send(w, *wanted, 1.0, "gone", "never")
        assert (report.documents, report.absences) == (9, 2)
        told = report.told[Collection(w.name, "a")]
        assert set(told) == {document_key(id_) for id_ in (*wanted, "gone", "never")}
        assert {one.id for one in told.values() if not one.there} == {"gone", "never"}
        deleted = "SELECT count(*) FROM crossfade.document WHERE state = 'deleted'"
        await w.until_value(deleted, 2)
        await w.start("publish", "publish")
        await until_equal(w, "a")
        copies = await w.events(lambda topic: topic.endswith(".copy"))
        sent = [one for one in copies if one.source is Source.REPAIR]
        assert len(sent) == 11
        for event in sent:
            one = told[document_key(event.id)]
            assert event.version == one.version
            assert (event.operation is Operation.UPSERT) == one.there


async def test_what_is_sent_is_newer_than_all_before_though_nothing_was_written(
    services: Services, tmp_path: Path
) -> None:
    async with things(services, tmp_path, "a", "b") as w:
        await w.mongo["a"].insert_one({"_id": 1})
        await w.start("publish", "publish")
        await w.until_value("SELECT count(*) FROM crossfade.collection WHERE copy_state = 'copied'", 2)
        await w.stop("publish")
        await w.mongo["b"].drop()
        async with opened(settings(w), w.mapping, "test") as sender:
            for collection, there in ((Collection(w.name, "a"), True), (Collection(w.name, "b"), False)):
                reports = [await sender.send({collection: [1]}) for _ in range(5)]
                told = [one.told[collection][document_key(1)] for one in reports]
                assert {one.there for one in told} == {there}
                versions = [one.version for one in told]
                assert versions == sorted(set(versions))


async def test_a_sender_says_what_is_missing(services: Services, tmp_path: Path) -> None:
    async with things(services, tmp_path, "a") as w:
        with pytest.raises(UsageError, match="nothing has been published"):
            await send(w, 1)
        with pytest.raises(ServiceUnavailable, match="MongoDB"):
            async with opened(
                settings(w, mongo_uri="mongodb://127.0.0.1:1/?serverSelectionTimeoutMS=100"), w.mapping, "t"
            ):
                raise AssertionError

"""A topic deleted by hand takes records along that were not applied: its collection is copied again."""

from __future__ import annotations

from pathlib import Path

import pytest
from bson import ObjectId

from tests.support.followed import followed
from tests.support.hands import remove_topic
from tests.support.world import PARTITIONS, World, world
from topics import document_key, partition_of
from worker.embedded import Services


@pytest.mark.parametrize("first", ["publish", "apply"])
async def test_what_a_deleted_topic_held_is_copied_again_though_the_new_one_grows_past_it(
    services: Services, tmp_path: Path, first: str
) -> None:
    async with followed(services, tmp_path, 400) as w:
        assert await w.stop("apply") == 0
        await w.mongo["forms"].update_many({}, {"$set": {"name": "lost with its topic"}})
        await w.published()
        before = _stream(w, await w.ends())
        assert await w.stop("publish") == 0
        await remove_topic(w.kafka, f"{w.name}.{w.name}.forms")
        if first == "apply":  # it makes the topic, and the publisher finds it there
            await w.start("apply", "apply again")
            await w.until(
                "apply is ready", lambda: "apply ready" in (tmp_path / "apply again.log").read_text()
            )
        await w.start("publish", "publish again")
        by_partition = {
            partition_of(document_key(one["_id"]), PARTITIONS): one["_id"]
            async for one in w.mongo["forms"].find({}, {"_id": 1})
        }
        assert len(by_partition) == PARTITIONS
        for number in range(max(before)):
            for id_ in by_partition.values():
                await w.mongo["forms"].update_one({"_id": id_}, {"$set": {"submitCount": number}})
        await w.published()
        assert all(now >= end for now, end in zip(_stream(w, await w.ends()), before, strict=True))
        if first == "publish":
            await w.start("apply", "apply again")
        await w.settled()
        await w.assert_nothing_lost()


async def test_what_is_deleted_is_gone_though_its_event_was_lost_before_the_first_copy(
    services: Services, tmp_path: Path
) -> None:
    async with world(services, tmp_path) as w:
        await w.load(200)
        await w.start("publish", "publish", CROSSFADE_COPY_RATE="1")  # it does not come to the forms
        await w.start("apply", "apply")
        await w.until_value("SELECT count(*) FROM crossfade.checkpoint WHERE token IS NOT NULL", 1)
        form = await w.mongo["forms"].find_one({})
        streamed = {**form, "_id": ObjectId()}
        await w.mongo["forms"].insert_one(streamed)
        await w.until_value("SELECT count(*) FROM form_configs", 1)
        assert await w.stop("apply") == 0
        await w.mongo["forms"].delete_one({"_id": streamed["_id"]})
        await w.published()
        assert await w.stop("publish") == 0
        await remove_topic(w.kafka, f"{w.name}.{w.name}.forms")
        await w.start("publish", "publish again")
        await w.start("apply", "apply again")
        await w.settled()
        await w.assert_nothing_lost()


def _stream(w: World, ends: dict[tuple[str, int], int]) -> list[int]:
    return [ends.get((f"{w.name}.{w.name}.forms", n), 0) for n in range(PARTITIONS)]

"""The change stream cannot go on where it stopped: it begins anew, and what was missed is found."""

from __future__ import annotations

from pathlib import Path
from uuid import uuid4

import bson
import pytest

from tests.support.followed import followed
from tests.support.world import World
from worker.embedded import Services

# A token that MongoDB no longer has, as Crossfade's checkpoint holds it after a fault.
DAMAGED = {
    "cut": bson.encode({"_data": "826B06F4AC000000122B022929"}),
    "no token": b"\x05\x00\x00\x00\x00",
    "no BSON": b"\x00\x01",
}


async def missed(w: World) -> None:
    """Change, delete and insert while nobody follows; a document comes and goes."""
    users = await w.mongo["users"].find().to_list(40)
    gone = [user["_id"] for user in users[:20]]
    await w.mongo["users"].delete_many({"_id": {"$in": gone}})
    await w.mongo["passwords"].delete_many({"userId": {"$in": gone}})
    await w.mongo["pages"].update_many({}, {"$unset": {"authorId": 1}, "$set": {"title": "changed"}})
    await w.mongo["leads"].delete_many({"score": {"$gt": 50}})
    form = await w.mongo["forms"].find_one()
    await w.mongo["forms"].insert_one({**form, "_id": uuid4(), "slug": "born-unseen"})


@pytest.mark.parametrize("damage", sorted(DAMAGED))
async def test_a_damaged_token_heals_by_itself(services: Services, tmp_path: Path, damage: str) -> None:
    async with followed(services, tmp_path, 400) as w:
        assert await w.stop("publish") == 0
        await w.execute("UPDATE crossfade.checkpoint SET token = $1", DAMAGED[damage])
        await missed(w)
        async with w.writes(80):
            await w.start("publish", "publish")
            await w.until_value("SELECT incarnations FROM crossfade.checkpoint", 2)
            await w.settled()
        await w.settled()
        await w.assert_nothing_lost()
        log = (tmp_path / "publish.log").read_text()
        reason = "SELECT reason FROM crossfade.audit WHERE action = 'publish: began anew'"
        assert "damaged" in await w.value(reason) or "does not take" in await w.value(reason)
        assert "beginning anew" in log and "removed what MongoDB no longer has" in log
        assert "Traceback" not in log


async def test_a_document_that_only_kafka_still_brings_is_removed_after_it(
    services: Services, tmp_path: Path
) -> None:
    async with followed(services, tmp_path, 400) as w:
        assert await w.stop("apply") == 0
        late = (await w.mongo["users"].find_one()) | {"_id": uuid4(), "email": "late@x.io"}
        await w.mongo["users"].insert_one(late)  # in Kafka, not applied
        await w.until_value(
            "SELECT count(*) FROM crossfade.checkpoint WHERE saved_at > now() - interval '1 second' "
            "AND token IS NOT NULL",
            1,
        )
        assert await w.stop("publish") == 0
        await w.execute("UPDATE crossfade.checkpoint SET token = $1", DAMAGED["cut"])
        await w.mongo["users"].delete_one({"_id": late["_id"]})
        await w.start("publish", "publish")
        await w.until_value("SELECT count(*) FROM crossfade.collection WHERE copy_state = 'removing'", 1)
        await w.start("apply", "apply")
        await w.settled()
        await w.assert_nothing_lost()


async def test_a_publisher_that_dies_in_the_removal_goes_on_with_it(
    services: Services, tmp_path: Path
) -> None:
    async with followed(services, tmp_path, 400) as w:
        assert await w.stop("publish") == 0
        await w.execute("UPDATE crossfade.checkpoint SET token = $1", DAMAGED["cut"])
        await missed(w)
        await w.start("publish", "publish", CROSSFADE_FAILPOINTS="removal.after_send=exit")
        assert await w.ended("publish") == 86
        await w.start("publish", "publish")
        await w.settled()
        await w.assert_nothing_lost()

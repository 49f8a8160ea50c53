"""Changes that a row at a time, or a comparison by value, would get wrong."""

from __future__ import annotations

import secrets
from pathlib import Path
from uuid import uuid4

import pytest

from examples.spaces.oracle import Difference
from tests.support.world import World, world
from worker.embedded import Services


async def _settled_without_apply(w: World) -> None:
    await w.start("publish", "publish")
    await w.start("apply", "apply")
    await w.settled()
    assert await w.stop("apply") == 0


@pytest.mark.parametrize("role", ["replica", "origin"])
async def test_unique_values_that_are_swapped_or_passed_on_fit_in_the_end(
    services: Services, tmp_path: Path, role: str
) -> None:
    async with world(services, tmp_path) as w:
        await w.load(200)
        await _settled_without_apply(w)
        tenant = (await w.mongo["users"].find_one())["tenantId"]
        users = await w.mongo["users"].find({"tenantId": tenant}).sort("_id", 1).to_list(6)
        one, two, *circle = users[:5]
        await _emails(w, {one["_id"]: "between@x.io", two["_id"]: one["email"]})
        await _emails(w, {one["_id"]: two["email"]})
        await _emails(w, {user["_id"]: f"between{n}@x.io" for n, user in enumerate(circle)})
        emails = [user["email"] for user in circle]
        await _emails(w, dict(zip((user["_id"] for user in circle), emails[1:] + emails[:1], strict=True)))
        gone = users[5]
        await w.mongo["passwords"].delete_many({"userId": gone["_id"]})
        await w.mongo["pages"].update_many({"authorId": gone["_id"]}, {"$unset": {"authorId": 1}})
        await w.mongo["leads"].update_many({"assignedTo": gone["_id"]}, {"$unset": {"assignedTo": 1}})
        await w.mongo["users"].delete_one({"_id": gone["_id"]})
        await w.mongo["users"].insert_one({**gone, "_id": uuid4()})
        await w.start("apply", "apply", CROSSFADE_REPLICATION_ROLE=role)
        await w.settled()
        await w.assert_nothing_lost()


@pytest.mark.parametrize("role", ["replica", "origin"])
async def test_rows_that_fit_only_together_fit_though_each_arrives_alone(
    services: Services, tmp_path: Path, role: str
) -> None:
    """A user goes, another takes its email, and what referred to the one refers to the other."""
    async with world(services, tmp_path) as w:
        await w.load(200)
        await _settled_without_apply(w)
        tenant = (await w.mongo["users"].find_one())["tenantId"]
        users = await w.mongo["users"].find({"tenantId": tenant}).sort("_id", 1).to_list(4)
        for user in users:
            heir = uuid4()
            await w.mongo["users"].delete_one({"_id": user["_id"]})
            await w.mongo["users"].insert_one({**user, "_id": heir})
            for name, path in (("pages", "authorId"), ("leads", "assignedTo"), ("passwords", "userId")):
                await w.mongo[name].update_many({path: user["_id"]}, {"$set": {path: heir}})
        # One chunk of one partition in each transaction.
        await w.start("apply", "apply", CROSSFADE_REPLICATION_ROLE=role, CROSSFADE_APPLY_BATCH="1")
        await w.settled(30)
        await w.assert_nothing_lost()
        parked = await w.value("SELECT count(*) FROM crossfade.dead_letter WHERE state = 'healed'")
        assert parked > 0 or role == "replica"


async def _emails(w: World, emails: dict[object, str]) -> None:
    for user, email in emails.items():
        await w.mongo["users"].update_one({"_id": user}, {"$set": {"email": email}})


async def test_a_number_in_an_array_that_changes_only_its_type_is_not_equal(
    services: Services, tmp_path: Path
) -> None:
    async with world(services, tmp_path) as w:
        await w.load(100)
        lead = await w.mongo["leads"].find_one_and_update(
            {}, {"$set": {"activities": [{"type": "call", "meta": {"n": 5}}]}}
        )
        await w.start("publish", "publish")
        await w.start("apply", "apply")
        await w.settled()
        await w.mongo["leads"].update_one({"_id": lead["_id"]}, {"$set": {"activities.0.meta.n": 5.0}})
        await w.settled()
        await w.assert_nothing_lost()
        assert "5.0" in await w.value(
            "SELECT meta::text FROM lead_activities WHERE lead_id = $1", lead["_id"]
        )


async def test_an_event_that_fits_arrives_though_the_next_one_of_its_document_does_not(
    services: Services, tmp_path: Path
) -> None:
    async with world(services, tmp_path) as w:
        await w.load(100)
        await _settled_without_apply(w)
        user = await w.mongo["users"].find_one() | {"_id": uuid4(), "email": "fits@x.io"}
        await w.mongo["users"].insert_one(user)
        too_long = secrets.token_hex(8000)  # for the index of the unique constraint
        await w.mongo["users"].update_one({"_id": user["_id"]}, {"$set": {"email": too_long}})
        await w.mongo["leads"].update_many({}, {"$set": {"email": "new@example.com"}})
        await w.start("apply", "apply")
        await w.settled()
        assert (await w.compare()).differences == [Difference("users", user["_id"], "different", ("email",))]
        assert await w.value("SELECT count(*) FROM users WHERE email = 'fits@x.io'") == 1
        reason = await w.value("SELECT reason FROM crossfade.dead_letter WHERE state = 'dead'")
        assert "too large" in reason and too_long[:20] not in reason

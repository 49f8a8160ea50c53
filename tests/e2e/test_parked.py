"""Events that wait for others: together, and not for ever."""

from __future__ import annotations

from pathlib import Path
from typing import Any
from uuid import UUID, uuid4

import pytest

from tests.support.letters import letters, running, told
from tests.support.world import World, world
from worker.embedded import Services
from worker.mapping import row_id


@pytest.mark.parametrize("role", ["replica", "origin"])
async def test_what_will_never_fit_is_parked_for_a_bounded_time_and_holds_up_no_chain_that_does(
    services: Services, tmp_path: Path, role: str
) -> None:
    """A duplicate, and an orphan where foreign keys are checked, beside rows that only fit together."""
    async with world(services, tmp_path) as w:
        await w.load(300)
        await w.mongo["users"].drop_indexes()  # MongoDB lets duplicates in, PostgreSQL does not
        within = "20" if role == "origin" else "4"
        env = {"CROSSFADE_REPLICATION_ROLE": role, "CROSSFADE_PARKED_WITHIN": within}
        await running(w, **env)
        tenant = (await w.mongo["users"].find_one())["tenantId"]
        users = await w.mongo["users"].find({"tenantId": tenant}).sort("_id", 1).to_list(6)
        page = await w.mongo["pages"].find_one({"tenantId": tenant})
        await w.mongo["users"].update_one({"_id": users[4]["_id"]}, {"$set": {"email": users[5]["email"]}})
        unfit = {users[4]["_id"]: "unique"}
        if role == "origin":
            await w.mongo["pages"].update_one({"_id": page["_id"]}, {"$set": {"authorId": uuid4()}})
            unfit[page["_id"]] = "foreign_key"
        await w.until_value("SELECT count(*) FROM crossfade.dead_letter WHERE attempts > 3", len(unfit))
        heir = await succession(w, users[0])
        if role == "origin":  # neither fits, and it is seconds until each is tried by itself
            named = f"('{users[0]['_id']}', '{heir}')"
            waiting = f"state = 'parked' AND attempts >= 5 AND row_id IN {named}"
            await w.until_value(f"SELECT count(*) FROM crossfade.dead_letter WHERE {waiting}", 2)
        await references(w, users[0]["_id"], heir)
        await w.until_value(f"SELECT count(*) FROM users WHERE id = '{heir}'", 1, seconds=5)
        if role == "origin":
            parked = "SELECT count(*) FROM crossfade.dead_letter WHERE state = 'parked'"
            assert await w.value(parked) == len(unfit)
        await w.settled()
        standing = [letter for letter in await letters(w) if letter["state"] == "dead"]
        assert {letter["row_id"]: letter["kind"] for letter in standing} == {
            row_id(id_): kind for id_, kind in unfit.items()
        }
        for letter in standing:
            named = {"unique": "unique_email_per_tenant", "foreign_key": "pages_author_id_fkey"}
            assert named[letter["kind"]] in letter["reason"] and "tries" in letter["reason"]
            assert letter["first_seen_at"] and letter["attempts"] > 3
        assert {one.id for one in (await w.compare()).differences} == set(unfit)

        await w.mongo["users"].update_one({"_id": users[5]["_id"]}, {"$set": {"email": "free@x.io"}})
        await w.settled()
        duplicate = next(one["dead_letter_id"] for one in standing if one["kind"] == "unique")
        await told(w, "replay", str(duplicate))
        await w.settled()
        assert (await told(w, "show", str(duplicate)))["state"] == "healed"


async def succession(w: World, user: dict[str, Any]) -> UUID:
    """Let another user take a user's email; return the new one."""
    heir = uuid4()
    await w.mongo["users"].delete_one({"_id": user["_id"]})
    await w.mongo["users"].insert_one({**user, "_id": heir})
    return heir


async def references(w: World, before: UUID, after: UUID) -> None:
    """Let what refers to one user refer to another, each document on its own."""
    for name, path in (("pages", "authorId"), ("leads", "assignedTo"), ("passwords", "userId")):
        for one in await w.mongo[name].find({path: before}).to_list(None):
            await w.mongo[name].update_one({"_id": one["_id"]}, {"$set": {path: after}})

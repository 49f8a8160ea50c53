"""A rogue event is replayed: PostgreSQL takes it, and MongoDB from there; or discarded: nothing does."""

from __future__ import annotations

from pathlib import Path
from typing import Any
from uuid import UUID, uuid4

import pytest

from tests.e2e.test_way_back import at_rest
from tests.support.way_back import application, assert_both_ways_equal, brought_back, set_phase
from tests.support.world import World, once, world
from worker.embedded import Services

DEAD = "SELECT count(*) FROM crossfade.dead_letter WHERE kind = 'rogue' AND state = 'dead'"
HEALED = "SELECT count(*) FROM crossfade.dead_letter WHERE kind = 'rogue' AND state = 'healed'"
NUMBER = "SELECT min(dead_letter_id)::text FROM crossfade.dead_letter WHERE kind = 'rogue'"
REPLAY = ("dead-letters", "replay", "--all", "--kind", "rogue", "--reason", "it was meant")


async def written_raw(w: World, tenant: UUID, other: UUID) -> list[dict[str, Any]]:
    """Change, delete, move and insert leads past the fence; return them as they are then, None if gone."""
    leads = w.mongo["leads"]
    busy = {"tenantId": tenant, "activities.0": {"$exists": True}}
    one, two, three = await leads.find(busy).sort("_id", 1).limit(3).to_list(3)
    await leads.update_one({"_id": one["_id"]}, {"$set": {"name": "raw"}, "$pop": {"activities": 1}})
    await leads.delete_one({"_id": two["_id"]})
    await leads.update_one({"_id": three["_id"]}, {"$set": {"tenantId": other}})
    new = {**one, "_id": uuid4(), "email": "raw@x"}
    await leads.insert_one(new)
    await w.until_value(DEAD, 4)
    await brought_back(w)
    changed = {**one, "name": "raw", "activities": one["activities"][:-1]}
    return [changed, {"_id": two["_id"]}, {**three, "tenantId": other}, new]


async def as_they_are(w: World, wanted: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Return these leads as MongoDB has them, in the same form; updatedAt is PostgreSQL's own."""
    found: list[dict[str, Any]] = []
    for one in wanted:
        now = await w.mongo["leads"].find_one({"_id": one["_id"]})
        found.append({"_id": one["_id"]} if now is None else now)
    return [{name: one[name] for name in one if name != "updatedAt"} for one in found]


@pytest.mark.parametrize("role", ["auto", "origin"])
async def test_a_rogue_event_is_replayed_into_postgresql_and_comes_to_mongodb(
    services: Services, tmp_path: Path, role: str
) -> None:
    async with world(services, tmp_path) as w:
        w.env["CROSSFADE_REPLICATION_ROLE"] = role
        tenant, other = await at_rest(w)
        wanted = await written_raw(w, tenant, other)
        assert await as_they_are(w, wanted) != wanted  # undone
        code, told = await once(w, *REPLAY[:-2])
        assert code == 2 and "say --reason" in told
        number = await w.value(NUMBER)
        code, told = await once(w, "dead-letters", "replay", number)
        assert code == 2 and "say --reason" in told
        code, told = await once(w, "dead-letters", "replay", "--all")
        assert (code, told) == (0, "0 replayed\n")  # those are not for all
        code, told = await once(w, *REPLAY)
        assert (code, told) == (0, "4 replayed\n")
        await w.until_value(HEALED, 4)
        await brought_back(w)
        plain = [{name: one[name] for name in one if name != "updatedAt"} for one in wanted]
        assert await as_they_are(w, wanted) == plain
        owner = "SELECT tenant_id FROM leads WHERE id = $1"
        assert await w.value(owner, wanted[2]["_id"]) == other
        audited = "SELECT count(*) FROM crossfade.audit WHERE action = $1 AND reason = $2 AND os_user <> ''"
        assert await w.value(audited, "dead-letters replay", "it was meant") == 4
        await w.settled()
        await assert_both_ways_equal(w)
        await set_phase(w, "mongo")  # and at home all goes on
        await w.mongo["leads"].update_many({}, {"$set": {"phone": "1"}})
        await w.settled()
        await assert_both_ways_equal(w)


async def one_raw(w: World, tenant: UUID) -> dict[str, Any]:
    """Change a lead past the fence; return it as it was."""
    lead = await w.mongo["leads"].find_one({"tenantId": tenant})
    assert lead is not None
    await w.mongo["leads"].update_one({"_id": lead["_id"]}, {"$set": {"name": "raw"}})
    await w.until_value(DEAD, 1)
    await brought_back(w)
    return lead


async def name_in(w: World, lead: dict[str, Any]) -> tuple[str, str]:
    """Return a lead's name in MongoDB and in PostgreSQL."""
    found = await w.mongo["leads"].find_one({"_id": lead["_id"]})
    assert found is not None
    return found["name"], await w.value("SELECT name FROM leads WHERE id = $1", lead["_id"])


async def test_a_replay_waits_for_the_end_of_a_rollback_and_is_done_where_its_tenant_writes(
    services: Services, tmp_path: Path
) -> None:
    async with world(services, tmp_path) as w:
        tenant, _ = await at_rest(w)
        lead = await one_raw(w, tenant)
        before = lead["name"]
        await set_phase(w, "rolling_back", tenant)
        assert (await once(w, *REPLAY))[0] == 0
        tried = "SELECT count(*) FROM crossfade.dead_letter WHERE state = 'parked' AND attempts > 2"
        await w.until_value(tried, 1)
        assert await name_in(w, lead) == (before, before)
        await set_phase(w, "mongo", tenant)
        await w.until_value(f"{DEAD} AND reason LIKE '%does not write in PostgreSQL%'", 1)
        assert await name_in(w, lead) == (before, before)
        await set_phase(w, "postgres", tenant)
        assert (await once(w, *REPLAY))[0] == 0
        await w.until_value(HEALED, 1)
        await brought_back(w)
        assert await name_in(w, lead) == ("raw", "raw")


async def test_in_complete_a_replay_is_of_postgresql_alone(services: Services, tmp_path: Path) -> None:
    async with world(services, tmp_path) as w:
        tenant, _ = await at_rest(w)
        lead = await one_raw(w, tenant)
        await set_phase(w, "complete", tenant)
        assert (await once(w, *REPLAY))[0] == 0
        await w.until_value(HEALED, 1)
        await brought_back(w)
        assert await name_in(w, lead) == (lead["name"], "raw")


async def test_a_discarded_rogue_event_changes_nothing(services: Services, tmp_path: Path) -> None:
    async with world(services, tmp_path) as w:
        tenant, _ = await at_rest(w)
        lead = await one_raw(w, tenant)
        number = await w.value(NUMBER)
        code, told = await once(w, "dead-letters", "discard", number, "--reason", "an old script")
        assert (code, told) == (0, "1 discarded\n")
        state = "SELECT state::text FROM crossfade.dead_letter WHERE kind = 'rogue'"
        assert await w.value(state) == "discarded"
        audited = "SELECT count(*) FROM crossfade.audit WHERE action = $1 AND reason = $2"
        assert await w.value(audited, "dead-letters discard", "an old script") == 1
        await w.settled()
        assert await name_in(w, lead) == (lead["name"], lead["name"])
        await assert_both_ways_equal(w)


async def test_what_a_replay_takes_along_comes_to_mongodb_too_and_what_it_breaks_is_refused(
    services: Services, tmp_path: Path
) -> None:
    """Foreign keys hold, as for the application: one that cascades, and one that does not."""
    async with world(services, tmp_path) as w:
        tenant, _ = await at_rest(w)
        await w.execute(
            "ALTER TABLE user_passwords DROP CONSTRAINT user_passwords_user_id_fkey, "
            "ADD FOREIGN KEY (user_id) REFERENCES users ON DELETE CASCADE"
        )
        free, author = uuid4(), await w.value("SELECT author_id FROM pages WHERE tenant_id = $1", tenant)
        async with application(w, tenant) as sql:
            await sql.execute("INSERT INTO users (id, tenant_id, email) VALUES ($1, $2, 'f@x')", free, tenant)
            await sql.execute(
                "INSERT INTO user_passwords (tenant_id, user_id, password_hash) VALUES ($2, $1, 'h')",
                free,
                tenant,
            )
        await brought_back(w)
        passwords = w.mongo["passwords"]
        assert await passwords.count_documents({"userId": free}) == 1
        await w.mongo["users"].delete_many({"_id": {"$in": [free, UUID(int=author.int)]}})
        await w.until_value(DEAD, 2)
        await brought_back(w)
        assert (await once(w, *REPLAY))[0] == 0
        await w.until_value(HEALED, 1)
        await w.until_value(f"{DEAD} AND reason LIKE 'it cannot be replayed%23503%'", 1)
        await brought_back(w)
        assert await w.mongo["users"].count_documents({"_id": {"$in": [free, UUID(int=author.int)]}}) == 1
        assert await passwords.count_documents({"userId": free}) == 0
        await w.settled()
        await assert_both_ways_equal(w)

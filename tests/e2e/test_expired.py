"""What a TTL index deletes of a tenant that has left MongoDB is `expired`: no rogue write, and not undone."""

from __future__ import annotations

from pathlib import Path
from typing import Any
from uuid import UUID

from tests.e2e.test_way_back import at_rest
from tests.support.expiring import expiring, grow_old, ttl_index
from tests.support.way_back import application, assert_both_ways_equal, brought_back, set_phase
from tests.support.world import World, world
from worker.embedded import Services

LETTERS = "SELECT count(*) FROM crossfade.dead_letter WHERE kind = '{}' AND state = '{}'"
_ROWS = "SELECT count(*) FROM leads WHERE id = ANY($1)"


async def there(w: World, *leads: dict[str, Any]) -> int:
    """Return how many of these leads MongoDB has."""
    return await w.mongo["leads"].count_documents({"_id": {"$in": [one["_id"] for one in leads]}})


async def home(w: World) -> None:
    """Let all tenants come home, with a floor above all that there was."""
    at = (await w.mongo.command("ping"))["operationTime"]
    await w.execute("UPDATE crossfade.tenant SET floor = $1", at.time << 32 | at.inc)
    await set_phase(w, "mongo")


async def test_a_ttl_index_s_delete_is_expired_and_one_by_hand_is_rogue(
    services: Services, tmp_path: Path
) -> None:
    async with world(services, tmp_path) as w:
        tenant, _ = await at_rest(w)
        await set_phase(w, "mongo")
        *old, kept = await grow_old(w, tenant, 4)
        young = await w.mongo["leads"].find_one({"tenantId": tenant, "createdAt": {"$ne": kept["createdAt"]}})
        assert young is not None
        await w.settled()
        await set_phase(w, "postgres")
        async with application(w, tenant) as sql:  # in PostgreSQL this one lives longer
            await sql.execute("UPDATE leads SET created_at = now() WHERE id = $1", kept["_id"])
        await brought_back(w)
        async with expiring(w):
            await ttl_index(w)
            await w.until_value(LETTERS.format("expired", "discarded"), len(old))
        await w.mongo["leads"].delete_many({"_id": {"$in": [young["_id"], kept["_id"]]}})
        await w.until_value(LETTERS.format("rogue", "dead"), 2)
        await brought_back(w)
        assert await there(w, *old) == 0 and await there(w, young, kept) == 2
        assert await w.value(_ROWS, [one["_id"] for one in (*old, young, kept)]) == 5
        told = await w.value("SELECT reason FROM crossfade.dead_letter WHERE kind = 'expired' LIMIT 1")
        assert "its TTL index old_leads deletes it" in told
        await _at_home(w, old)


async def _at_home(w: World, old: list[dict[str, Any]]) -> None:
    """Home again, MongoDB's delete counts; but not of what the application has changed since."""
    async with application(w, UUID(bytes=old[0]["tenantId"].bytes)) as sql:
        await sql.execute("UPDATE leads SET created_at = now() WHERE id = $1", old[0]["_id"])
    await brought_back(w)
    await w.settled()  # the echo of that
    await home(w)
    await w.until_value(LETTERS.format("expired", "healed"), len(old))
    assert await w.value(_ROWS, [one["_id"] for one in old]) == 1 == await there(w, old[0])
    await assert_both_ways_equal(w)


async def test_what_postgresql_has_deleted_as_well_is_expired(services: Services, tmp_path: Path) -> None:
    """Its owner's own job deletes there, and the way back may be the later one of the two."""
    async with world(services, tmp_path) as w:
        tenant, _ = await at_rest(w)
        await w.stop("reverse")
        lead = await w.mongo["leads"].find_one({"tenantId": tenant})
        assert lead is not None
        await ttl_index(w)
        async with application(w, tenant) as sql:
            await sql.execute("DELETE FROM lead_activities WHERE lead_id = $1", lead["_id"])
            await sql.execute("DELETE FROM leads WHERE id = $1", lead["_id"])
        await w.mongo["leads"].delete_one({"_id": lead["_id"]})
        await w.until_value(LETTERS.format("expired", "discarded"), 1)
        await w.start("reverse", "reverse again")
        await brought_back(w)
        assert await there(w, lead) == 0
        await assert_both_ways_equal(w)

"""What was done in MongoDB to tenants that had left, and no event tells, is found by a copy, and undone."""

from __future__ import annotations

from pathlib import Path
from uuid import UUID

from tests.e2e.test_rogue import written_raw
from tests.e2e.test_way_back import at_rest
from tests.faults.test_lost_token import DAMAGED
from tests.support.way_back import assert_both_ways_equal, brought_back, set_phase
from tests.support.world import World, world
from worker.embedded import Services

COPIED = "SELECT count(*) FROM crossfade.collection WHERE copies > 1 AND copy_state = 'copied'"


async def _undone(w: World, copies: int) -> None:
    """Wait until so many collections are copied again, and what that found is undone."""
    await w.until_value(COPIED, copies)
    await brought_back(w)
    await w.settled()
    await assert_both_ways_equal(w)
    assert await w.value("SELECT count(*) FROM crossfade.dead_letter") == 0


async def test_what_nobody_followed_is_undone(services: Services, tmp_path: Path) -> None:
    async with world(services, tmp_path) as w:
        tenant, other = await at_rest(w)
        rows = await w.value("SELECT jsonb_object_agg(id, xmin::text) FROM users")
        assert await w.stop("publish") == 0
        await w.execute("UPDATE crossfade.checkpoint SET token = $1", DAMAGED["cut"])
        await written_raw(w, tenant, other)
        await w.start("publish", "publish")
        await w.until_value(COPIED, len(w.mapping.collections))
        await brought_back(w)
        # What PostgreSQL never had is not taken from MongoDB.
        born = {"_id": {"$in": [UUID(int=7), UUID(int=8)]}}
        assert (await w.mongo["users"].delete_many(born)).deleted_count == 2
        await _undone(w, len(w.mapping.collections))
        assert await w.value("SELECT jsonb_object_agg(id, xmin::text) FROM users") == rows


async def test_a_collection_that_was_dropped_comes_back(services: Services, tmp_path: Path) -> None:
    async with world(services, tmp_path) as w:
        tenant, home = await at_rest(w)
        await set_phase(w, "mongo", home)
        rows = await w.value("SELECT count(*) FROM leads WHERE tenant_id = $1", tenant)
        await w.mongo["leads"].drop()
        await _undone(w, 1)
        assert await w.mongo["leads"].count_documents({"tenantId": tenant}) == rows > 0
        assert await w.value("SELECT count(*) FROM leads") == rows  # those of the tenant at home are gone

"""The way back: what a switched tenant's application writes in PostgreSQL, MongoDB has as well."""

from __future__ import annotations

from pathlib import Path
from uuid import UUID, uuid4

import asyncpg
from bson import ObjectId

from tests.support.way_back import (
    application,
    assert_both_ways_equal,
    brought_back,
    outcomes,
    switched,
)
from tests.support.world import World, world
from worker.embedded import Services
from worker.mapping.ids import row_id, uuid_to_objectid


async def at_rest(w: World, documents: int = 400) -> list[UUID]:
    """Everything copied, all tenants switched, the way back running; return the tenants."""
    await w.load(documents, tenants=2)
    await w.start("publish", "publish")
    await w.start("apply", "apply")
    await w.settled()
    await switched(w)
    await w.start("reverse", "reverse")
    return await w.mongo["leads"].distinct("tenantId")


async def write_a_bit_of_everything(w: World, tenant: UUID) -> None:
    """As the application does: inserts, updates, deletes, child rows that move."""
    async with application(w, tenant) as sql:
        await sql.execute("UPDATE users SET login_count = coalesce(login_count, 0) + 1, profile = '[{}]'")
        new = uuid4()
        await sql.execute(
            "INSERT INTO leads (id, tenant_id, email, data, score) "
            "VALUES ($1, $2, 'new@x', '{\"k\": [1]}', 2.5)",
            new,
            tenant,
        )
        await sql.execute(
            "INSERT INTO lead_activities (lead_id, tenant_id, position, type, meta) "
            "VALUES ($1, $2, 0, 'call', '{}'), ($1, $2, 1, 'mail', NULL)",
            new,
            tenant,
        )
    async with application(w, tenant) as sql:
        born = await sql.fetchval("SELECT id FROM leads WHERE email = 'new@x'")
        from_ = await sql.fetchval("SELECT lead_id FROM lead_activities WHERE lead_id <> $1 LIMIT 1", born)
        moved = await sql.execute(  # its old document and its new one
            "UPDATE lead_activities SET lead_id = $1, position = 2 WHERE lead_id = $2 "
            "AND position = (SELECT max(position) FROM lead_activities WHERE lead_id = $2)",
            born,
            from_,
        )
        assert moved == "UPDATE 1"
        await sql.execute("UPDATE leads SET status = 'won', rest = NULL WHERE id = $1", born)
        await sql.execute("DELETE FROM pages WHERE id = (SELECT id FROM pages ORDER BY id LIMIT 1)")
        await sql.execute("UPDATE pages SET seo = NULL, title = title || '!' WHERE version > 1")
        await sql.execute(
            "WITH gone AS (DELETE FROM lead_activities WHERE lead_id = (SELECT lead_id FROM lead_activities "
            "WHERE lead_id <> ALL($1) ORDER BY lead_id LIMIT 1) RETURNING lead_id) SELECT count(*) FROM gone",
            [born, from_],
        )


async def test_what_the_application_writes_in_postgresql_mongodb_has_too(
    services: Services, tmp_path: Path
) -> None:
    async with world(services, tmp_path) as w:
        tenants = await at_rest(w)
        before = await outcomes(w)
        untouched = await w.value("SELECT array_agg(xmin::text ORDER BY id) FROM form_configs")
        for tenant in tenants:
            await write_a_bit_of_everything(w, tenant)
        changed = await w.value("SELECT jsonb_object_agg(id, xmin::text) FROM leads")
        await brought_back(w)
        await w.settled()
        await assert_both_ways_equal(w)
        assert (
            await w.mongo["leads"].count_documents({"email": "new@x", "activities.2": {"$exists": True}}) == 2
        )
        after = await outcomes(w)
        assert after["echo"] > 0 and after["applied"] == before["applied"]
        assert after["dead_lettered"] == after["switched"] == 0
        # No loop: echoes touch no row, and nothing is sent again.
        assert await w.value("SELECT jsonb_object_agg(id, xmin::text) FROM leads") == changed
        assert await w.value("SELECT array_agg(xmin::text ORDER BY id) FROM form_configs") == untouched
        assert await w.value("SELECT count(*) FROM crossfade.outbox") == 0
        assert await w.stop("reverse") == 0


async def test_only_what_differs_is_written(services: Services, tmp_path: Path) -> None:
    async with world(services, tmp_path) as w:
        tenant, _ = await at_rest(w)
        page = await w.mongo["pages"].find_one({"tenantId": tenant})
        assert page is not None
        async with w.mongo.watch([{"$match": {"ns.coll": "pages"}}]) as changes:
            async with application(w, tenant) as sql:
                await sql.execute("UPDATE pages SET title = 'another' WHERE id = $1", row_id(page["_id"]))
            await brought_back(w)
            change = await changes.next()
            assert change["operationType"] == "update"
            told = change["updateDescription"]
            assert set(told["updatedFields"]) == {"title", "updatedAt"} and told["removedFields"] == []
        now = await w.mongo["pages"].find_one({"_id": page["_id"]})
        assert now is not None and list(now) == list(page)


async def test_ids_for_rows_born_here_are_objectids_there(services: Services, tmp_path: Path) -> None:
    async with world(services, tmp_path) as w:
        made = [await w.value("SELECT crossfade.objectid_uuid()") for _ in range(300)]
        found = [uuid_to_objectid(UUID(int=one.int)) for one in made]
        assert all(isinstance(one, ObjectId) for one in found) and len(set(found)) == 300
        at = await w.value("SELECT clock_timestamp()")
        assert abs((found[-1].generation_time - at).total_seconds()) < 60  # pyright: ignore


async def test_capture_is_installed_once_and_taken_away_whole(services: Services, tmp_path: Path) -> None:
    from worker.postgres.capture import capture_faults, install_capture, remove_capture

    async with world(services, tmp_path) as w:
        connection = await w.connect()
        numbers = {str(one): n for n, one in enumerate(w.mapping.namespaces(), 1)}
        count = "SELECT count(*) FROM pg_trigger WHERE tgname LIKE 'crossfade%'"
        missing = await capture_faults(connection, w.mapping)
        assert len(missing) == 21
        for _ in range(2):
            await install_capture(connection, w.mapping, numbers)
            assert await capture_faults(connection, w.mapping) == []
            assert await connection.fetchval(count) == 21
        await connection.execute("ALTER TABLE leads DISABLE TRIGGER crossfade_capture_delete")
        assert await capture_faults(connection, w.mapping) == [
            "trigger crossfade_capture_delete of leads is switched off"
        ]
        await remove_capture(connection)
        assert await connection.fetchval(count) == 0
        left = "SELECT count(*) FROM pg_proc WHERE proname LIKE 'capture%'"
        assert await connection.fetchval(left) == 0
        await connection.close()


async def test_the_syncs_own_writes_are_not_captured(services: Services, tmp_path: Path) -> None:
    async with world(services, tmp_path) as w:
        await w.load(400, tenants=2)
        from tests.support.way_back import install

        await w.start("publish", "publish")
        await w.start("apply", "apply", CROSSFADE_REPLICATION_ROLE="origin")
        await w.until_value("SELECT count(*) FROM crossfade.collection", 6)
        await install(w)
        await w.mongo["users"].update_many({}, {"$set": {"name": "changed"}})
        await w.settled()
        assert await w.value("SELECT count(*) FROM crossfade.outbox") == 0
        connection = await asyncpg.connect(services.dsn("postgres", w.name))
        await connection.execute("UPDATE users SET name = 'by hand'")
        users = await connection.fetchval("SELECT count(*) FROM users")
        assert await connection.fetchval("SELECT count(*) FROM crossfade.outbox") == users
        await connection.close()

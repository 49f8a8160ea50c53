"""Attempts against the walls by raw clients, before and after a cutover: each is refused, or told."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any
from uuid import UUID, uuid4

import asyncpg
import pytest
from pymongo import InsertOne
from pymongo.errors import BulkWriteError, OperationFailure, WriteError

from tests.support.moving import LEAD, application, cutover, moving, phase, tenants_of
from tests.support.world import World, once
from worker.embedded import Services

_DEFINERS = """
SELECT string_agg(DISTINCT p.proname, ' ') FROM pg_proc p
WHERE p.pronamespace = 'crossfade'::regnamespace AND p.prosecdef AND p.prorettype = 'trigger'::regtype
"""


async def refused(work: Awaitable[object], *states: str) -> None:
    with pytest.raises(asyncpg.PostgresError) as error:
        await work
    assert error.value.sqlstate in states, error.value


async def _copy(connection: asyncpg.Connection, tenant: UUID) -> None:
    row = uuid4(), tenant
    await connection.copy_records_to_table("leads", records=[row], columns=["id", "tenant_id"])


async def _postgres_before(w: World, tenant: UUID, other: UUID) -> None:
    """At home in MongoDB, PostgreSQL takes nothing of a tenant."""
    async with application(w, tenant) as app:
        await refused(app.execute(LEAD, uuid4(), tenant), "XF001")
        await refused(app.execute("UPDATE leads SET name = 'x'"), "XF001")
        await refused(app.execute("DELETE FROM leads"), "XF001")
        await refused(app.execute("UPDATE leads SET name = 'x' WHERE false"), "XF001")
        await refused(app.execute("DELETE FROM lead_activities"), "XF001")
        await refused(
            app.execute(
                "INSERT INTO leads (id, tenant_id) VALUES ($1, $2) ON CONFLICT DO NOTHING", other, tenant
            ),
            "XF001",
        )
        await refused(app.execute("UPDATE crossfade.tenant SET phase = 'postgres'"), "42501")
        await refused(app.execute("TRUNCATE leads"), "42501")
        await refused(app.execute("ALTER TABLE leads DISABLE TRIGGER ALL"), "42501")
        await refused(app.execute("SET session_replication_role = replica"), "42501")
    async with application(w, None) as app:
        await refused(app.execute(LEAD, uuid4(), tenant), "XF001")
    owner = await w.connect()
    try:
        await owner.execute("SELECT set_config('app.current_tenant_id', $1, false)", str(tenant))
        await refused(owner.execute(LEAD, uuid4(), tenant), "XF001")
        await refused(owner.execute("TRUNCATE leads CASCADE"), "XF001")
        await refused(_copy(owner, tenant), "XF001")
    finally:
        await owner.close()


async def _postgres_after(w: World, tenant: UUID, home: UUID) -> None:
    """After its cutover a tenant writes its own rows, and nobody else's."""
    async with application(w, tenant) as app:
        await app.execute(LEAD, uuid4(), tenant)
        await refused(app.execute(LEAD, uuid4(), home), "42501")
        await refused(_copy(app, tenant), "0A000")
        await refused(app.execute("TRUNCATE leads"), "42501")
        await _our_functions(w, app)
    owner = await w.connect()
    try:
        await owner.execute("SELECT set_config('app.current_tenant_id', $1, false)", str(tenant))
        await refused(owner.execute("TRUNCATE leads CASCADE"), "XF001")
        await refused(_copy(owner, tenant), "XF001")
    finally:
        await owner.close()


async def _our_functions(w: World, app: asyncpg.Connection) -> None:
    """An application's own table would tell them, as their owner, of any tenant's rows."""
    functions = (await w.value(_DEFINERS)).split()
    assert {"fence", "expired_at_home", "capture_leads"} <= set(functions)
    await app.execute("CREATE TEMP TABLE own (id uuid, tenant_id uuid, phase crossfade.phase)")
    for one in functions:
        trigger = f"CREATE TRIGGER own AFTER UPDATE ON own FOR EACH ROW EXECUTE FUNCTION crossfade.{one}()"
        await refused(app.execute(trigger), "42501")


async def _mongo_after(w: World, tenant: UUID, home: UUID, began: Any) -> None:
    """After its cutover MongoDB refuses whatever leaves a document of the tenant there."""
    leads = w.mongo["leads"]
    mine = await leads.find_one({"tenantId": tenant})
    theirs = await leads.find_one({"tenantId": home})
    new = {"_id": uuid4(), "tenantId": tenant, "email": "a@b.example"}
    attempts: list[Callable[[], Awaitable[object]]] = [
        lambda: leads.insert_one(dict(new)),
        lambda: leads.update_one({"_id": mine["_id"]}, {"$set": {"name": "x"}}),
        lambda: leads.update_many({"tenantId": tenant}, {"$set": {"name": "x"}}),
        lambda: leads.replace_one({"_id": mine["_id"]}, {**mine, "name": "x"}),
        lambda: leads.update_one({"_id": uuid4(), "tenantId": tenant}, {"$set": {"name": "x"}}, upsert=True),
        lambda: leads.find_one_and_update({"_id": mine["_id"]}, {"$set": {"name": "x"}}),
        lambda: leads.bulk_write([InsertOne(dict(new))]),
        # Another tenant's document, made this one's.
        lambda: leads.update_one({"_id": theirs["_id"]}, {"$set": {"tenantId": tenant}}),
        lambda: leads.aggregate(
            [{"$match": {"_id": mine["_id"]}}, {"$set": {"name": "x"}}, {"$merge": {"into": "leads"}}]
        ).to_list(None),
    ]
    for number, attempt in enumerate(attempts):
        with pytest.raises((WriteError, BulkWriteError, OperationFailure)) as error:
            await attempt()
        codes = {
            error.value.code,
            *(one["code"] for one in (error.value.details or {}).get("writeErrors", [])),
        }
        assert 121 in codes, (number, error.value)
    # A transaction that was begun before, and has read.
    with pytest.raises(OperationFailure) as late:
        await leads.update_one({"_id": mine["_id"]}, {"$set": {"name": "x"}}, session=began)
    assert late.value.code in (121, 112, 246, 251, 263), late.value


async def _rogues(w: World, tenant: UUID, home: UUID) -> None:
    """What MongoDB cannot refuse is kept, and undone by the way back."""
    leads = w.mongo["leads"]
    gone, moved = await leads.find({"tenantId": tenant}).limit(2).to_list(2)
    await leads.delete_one({"_id": gone["_id"]})
    await leads.update_one({"_id": moved["_id"]}, {"$set": {"tenantId": home}})
    await w.until_value("SELECT count(*) FROM crossfade.dead_letter WHERE kind = 'rogue'", 2)

    async def restored() -> bool:
        now = [await leads.find_one({"_id": one["_id"]}) for one in (gone, moved)]
        return now == [gone, moved]

    await w.until_async("both documents are restored", restored)


async def test_attempts_against_the_walls(services: Services, tmp_path: Path) -> None:
    async with moving(services, tmp_path, tenants=3) as w:
        tenant, home, other = await tenants_of(w)
        await _postgres_before(w, tenant, other)
        before = await _mongo_options(w)
        async with await w.client.start_session() as began:
            began.start_transaction()
            await w.mongo["of nobody"].find_one({}, session=began)
            force = ("--force", "open-transactions-mongodb")
            code, results = await cutover(w, str(tenant), "--window", "60", *force)
            assert code == 0, results
            await _postgres_after(w, tenant, home)
            await _mongo_after(w, tenant, home, began)
            await began.abort_transaction()
        assert await _mongo_options(w) != before
        await _rogues(w, tenant, home)
        await _snapshots(w, tenant)
        assert await phase(w, tenant) == "mongo"
        assert await _mongo_options(w) == before
        await _statement_across(w, other)
        await w.settled()
        assert await w.unequal() == []


async def _statement_across(w: World, tenant: UUID) -> None:
    """A statement of many documents is refused from where the fence meets it; what it wrote before counts."""
    leads, mine = w.mongo["leads"], {"tenantId": tenant}
    slowly = {**mine, "$where": "sleep(200) || true"}
    running = asyncio.ensure_future(leads.update_many(slowly, {"$set": {"name": "across"}}))
    across = {**mine, "name": "across"}
    await w.until_async("it has begun", lambda: leads.count_documents(across))
    code, results = await cutover(w, str(tenant), "--window", "60", "--deadline", "5")
    assert code == 0, results
    with pytest.raises(WriteError) as error:
        await running
    assert error.value.code == 121, error.value
    written = await leads.count_documents(across)
    assert 0 < written < await leads.count_documents(mine)
    async with application(w, tenant) as app:
        assert await app.fetchval("SELECT count(*) FROM leads WHERE name = 'across'") == written


async def _mongo_options(w: World) -> dict[str, Any]:
    """Return each collection's validation. MongoDB says its defaults of one that was ever changed."""
    defaults = {"validationLevel": "strict", "validationAction": "error"}
    found = await w.mongo.list_collections()
    return {one["name"]: defaults | one["options"] async for one in found}


async def _snapshots(w: World, tenant: UUID) -> None:
    """A rollback waits for writers, and refuses what began before it and writes after it."""
    async with application(w, tenant) as app, application(w, tenant) as old, application(w, tenant) as older:
        writing = app.transaction()
        await writing.start()
        await app.execute(LEAD, uuid4(), tenant)
        code, told = await once(w, "rollback", str(tenant))
        assert code == 1 and "writers in PostgreSQL do not end: pid" in told, told
        assert await phase(w, tenant) == "postgres"
        await writing.commit()
        for connection, isolation in ((old, "repeatable_read"), (older, "serializable")):
            await connection.execute(f"BEGIN ISOLATION LEVEL {isolation.replace('_', ' ')}")
            await connection.fetchval("SELECT count(*) FROM leads")
        running = asyncio.create_task(
            app.execute("UPDATE leads SET name = 'across' WHERE pg_sleep(0.15) IS NOT NULL")
        )
        code, told = await once(w, "rollback", str(tenant), "--window", "0")
        assert not running.done(), "too short to say anything"
        assert code == 1 and "writers in PostgreSQL do not end: pid" in told, told
        code, told = await once(w, "rollback", str(tenant), "--window", "60")
        assert code == 0, told
        count = int((await running).rpartition(" ")[2])
        assert count and await w.mongo["leads"].count_documents({"name": "across"}) == count
        await refused(old.execute(LEAD, uuid4(), tenant), "40001")
        await refused(older.execute(LEAD, uuid4(), tenant), "40001")
        await refused(app.execute(LEAD, uuid4(), tenant), "XF001")


@pytest.mark.parametrize(
    ("level", "action"), [("strict", "error"), ("moderate", "error"), ("strict", "warn")]
)
async def test_an_applications_validator_is_as_before(
    services: Services, tmp_path: Path, level: str, action: str
) -> None:
    async with moving(services, tmp_path, tenants=2, documents=200) as w:
        tenant, home = await tenants_of(w)
        own = {"$jsonSchema": {"properties": {"email": {"bsonType": "string"}}}}
        await w.mongo.command(
            "collMod", "leads", validator=own, validationLevel=level, validationAction=action
        )
        before = await _mongo_options(w)
        code, results = await cutover(w, str(tenant), "--rehearse", "--window", "60")
        assert code == 0, results
        assert await _mongo_options(w) == before, "after an abort"
        code, results = await cutover(w, str(tenant), "--window", "60")
        assert code == 0, results
        wrong = {"_id": uuid4(), "tenantId": home, "email": 7}
        if (level, action) == ("strict", "error"):
            with pytest.raises(WriteError):
                await w.mongo["leads"].insert_one(wrong)
        else:  # set aside: it would refuse what it had let in
            lead = await w.mongo["leads"].find_one({"tenantId": home})
            await w.mongo["leads"].update_one({"_id": lead["_id"]}, {"$set": {"phone": "1"}})
        code, told = await once(w, "rollback", str(tenant), "--window", "60")
        assert code == 0, told
        assert await _mongo_options(w) == before, "after a rollback"

"""The live writer keeps its rate and knows what it has written, whatever becomes of the server."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator
from typing import Any
from uuid import UUID, uuid4

import pytest
import pytest_asyncio
from bson import Binary
from motor.motor_asyncio import AsyncIOMotorClient

from examples.spaces.generate import Generator
from examples.spaces.ledger import Ledger
from examples.spaces.plans import KINDS
from examples.spaces.writer import Writer
from worker.embedded import Services


@pytest_asyncio.fixture
async def mongo(services: Services) -> AsyncIterator[Any]:
    client: Any = AsyncIOMotorClient(services.mongo_uri, uuidRepresentation="standard", tz_aware=True)
    database = client[f"writer_{uuid4().hex[:12]}"]
    try:
        await Generator(21).load(database, 6, 3000)
        yield database
    finally:
        await client.drop_database(database.name)
        client.close()


async def _write(writer: Writer, seconds: float) -> None:
    stop = asyncio.Event()
    asyncio.get_running_loop().call_later(seconds, stop.set)
    await writer.run(stop)


async def test_rate_is_kept_all_kinds_occur_and_the_ledger_is_right(mongo: Any) -> None:
    writer = Writer(mongo.client, mongo.name, 200, seed=1, ledger=Ledger())
    begun = time.monotonic()
    await _write(writer, 8)
    rate = writer.counters.changes / (time.monotonic() - begun)
    assert 180 <= rate <= 220
    assert writer.counters.by_kind.keys() == KINDS.keys()
    assert writer.ledger and len(writer.ledger) > 500
    assert await writer.ledger.compare(mongo) == []


async def test_a_broken_promise_is_found_by_the_ledger(mongo: Any) -> None:
    ledger = Ledger()
    writer = Writer(mongo.client, mongo.name, 100, seed=2, ledger=ledger)
    await _write(writer, 2)
    ids = list(ledger.states["leads"])
    lost, stale = await mongo.leads.find({"_id": {"$in": ids}}).to_list(2)
    deleted = next(iter(set(ids) - {lead["_id"] async for lead in mongo.leads.find()}))
    await mongo.leads.delete_one({"_id": lost["_id"]})
    await mongo.leads.update_one({"_id": stale["_id"]}, {"$inc": {"score": 1}})
    await mongo.leads.insert_one({"_id": deleted})
    assert {(wrong.id, wrong.kind) for wrong in await ledger.compare(mongo)} == {
        (lost["_id"], "lost"),
        (stale["_id"], "stale"),
        (deleted, "resurrected"),
    }


async def test_references_emails_and_passwords_stay_sound(mongo: Any) -> None:
    await _write(Writer(mongo.client, mongo.name, 300, seed=3), 4)
    # A second writer, as after a restart, with the same seed.
    await _write(Writer(mongo.client, mongo.name, 300, seed=3), 4)
    ids = {name: set(await mongo[name].distinct("_id")) for name in ("tenants", "users", "forms")}
    async for page in mongo.pages.find({"authorId": {"$exists": True}}):
        assert page["authorId"] in ids["users"]
    async for lead in mongo.leads.find():
        assert lead["tenantId"] in ids["tenants"]
        assert lead.get("formId") is None or lead["formId"] in ids["forms"]
        assert lead.get("assignedTo") is None or lead["assignedTo"] in ids["users"]
        assert len(lead.get("activities") or []) <= 6
    assert sorted(await mongo.passwords.distinct("userId")) == sorted(ids["users"])
    assert len(await mongo.users.distinct("email")) == len(ids["users"])


# With the driver's retries, and with none but the writer's own.
@pytest.mark.parametrize("options", ["", "&retryWrites=false&serverSelectionTimeoutMS=200"])
async def test_acknowledged_writes_survive_kills_and_none_is_done_twice(
    services: Services, mongo: Any, options: str
) -> None:
    client: Any = AsyncIOMotorClient(services.mongo_uri + options)
    writer, stop = Writer(client, mongo.name, 200, seed=4, ledger=Ledger()), asyncio.Event()
    running = asyncio.create_task(writer.run(stop))
    for _ in range(3):
        await asyncio.sleep(1.5)
        await services.kill("mongod")
        await services.start("mongod")
    await asyncio.sleep(1)
    stop.set()
    await running
    client.close()
    assert writer.counters.retries > 0 or not options
    assert writer.counters.conflicts == 0
    assert writer.counters.unknown == 0
    assert writer.ledger and await writer.ledger.compare(mongo) == []


async def test_stopping_ends_in_time_while_the_server_is_away(services: Services, mongo: Any) -> None:
    uri = f"{services.mongo_uri}&serverSelectionTimeoutMS=300"
    client: Any = AsyncIOMotorClient(uri)
    writer, stop = Writer(client, mongo.name, 300, ledger=Ledger(), patience=1), asyncio.Event()
    running = asyncio.create_task(writer.run(stop))
    await asyncio.sleep(1)
    await services.kill("mongod")
    try:
        await asyncio.sleep(1)
        stop.set()
        await asyncio.wait_for(running, 15)
    finally:
        client.close()
        await services.start("mongod")
    assert writer.counters.unknown > 0
    assert writer.ledger and await writer.ledger.compare(mongo) == []


async def test_a_fenced_tenant_is_left_alone_and_the_others_go_on(mongo: Any) -> None:
    fenced = (await mongo.tenants.find_one())["_id"]
    before = await mongo.leads.count_documents({"tenantId": fenced})
    for name in ("users", "passwords", "forms", "pages", "leads"):
        await mongo.command(
            "collMod",
            name,
            validator={"tenantId": {"$nin": [Binary.from_uuid(fenced)]}},
            validationLevel="strict",
        )
    seen: set[UUID] = set()
    writer = Writer(mongo.client, mongo.name, 200, seed=5, on_write=lambda tenant, seconds: seen.add(tenant))
    await _write(writer, 2)
    assert writer.counters.refused > 0
    assert len(seen) >= 5
    # Deletes and moves to others pass a validator: only a writer that asks first leaves the tenant whole.
    assert await mongo.leads.count_documents({"tenantId": fenced}) <= before


async def test_a_writer_that_asks_first_never_writes_for_a_tenant_that_has_left(mongo: Any) -> None:
    left = (await mongo.tenants.find_one())["_id"]
    seen: set[UUID] = set()
    writer = Writer(
        mongo.client,
        mongo.name,
        200,
        allows=lambda tenant: tenant != left,
        on_write=lambda tenant, seconds: seen.add(tenant),
    )
    before = await mongo.leads.find({"tenantId": left}).sort("_id").to_list(None)
    await _write(writer, 2)
    assert left not in seen
    assert await mongo.leads.find({"tenantId": left}).sort("_id").to_list(None) == before


async def test_a_database_without_tenants_is_refused(mongo: Any) -> None:
    with pytest.raises(ValueError, match="no tenants"):
        await Writer(mongo.client, f"{mongo.name}_empty", 10).run(asyncio.Event())

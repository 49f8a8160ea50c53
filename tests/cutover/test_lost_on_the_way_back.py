"""What Kafka loses of the way back keeps its tenant in PostgreSQL, until it was sent again and has come."""

from __future__ import annotations

from pathlib import Path
from uuid import UUID

from tests.e2e.test_gaps import empty
from tests.support.edges import bring
from tests.support.moving import application, moving, phase, tenants_of
from tests.support.way_back import assert_both_ways_equal, brought_back
from tests.support.world import World, once
from worker.embedded import Services

_BUSY = {"update": "leads", "bypassDocumentValidation": True}


async def test_a_record_that_kafka_lost(services: Services, tmp_path: Path) -> None:
    async with moving(services, tmp_path, documents=150, tenants=2) as w:
        tenant = (await tenants_of(w))[0]
        await bring(w, tenant, "postgres")
        lead = await w.mongo["leads"].find_one({"tenantId": tenant})
        assert lead is not None
        await _sent_and_lost(w, tenant, lead["_id"], "in PostgreSQL")
        # Nothing newer has come: that it must have come is certain in the pause alone.
        code, told = await once(w, "rollback", str(tenant), "--window", "0")
        assert code == 1 and "1 documents that were sent did not come to MongoDB" in told, told
        assert await phase(w, tenant) == "postgres"
        await brought_back(w)  # it was sent again
        await _sent_and_lost(w, tenant, lead["_id"], "again")
        async with application(w, tenant) as app:
            await app.execute("UPDATE leads SET phone = '1' WHERE id <> $1", lead["_id"])
        await brought_back(w)
        # What is older than something that has come is found before the pause.
        code, told = await once(w, "rollback", str(tenant), "--window", "0")
        assert code == 0 and "1 documents that were sent did not come to MongoDB: they are sent" in told, told
        found = await w.mongo["leads"].find_one({"_id": lead["_id"]})
        assert found is not None and found["name"] == "again"
        await w.settled()
        await assert_both_ways_equal(w)


async def test_what_was_sent_and_is_a_neighbour_s_now(services: Services, tmp_path: Path) -> None:
    """It is not the rollback's business, and must not be sent again: it would be taken for gone."""
    often = {"CROSSFADE_RECONCILE_FULL_EVERY": "2"}
    async with moving(services, tmp_path, documents=150, tenants=2, **often) as w:
        tenant, other = await tenants_of(w)
        await bring(w, tenant, "postgres")
        lead = await w.mongo["leads"].find_one({"tenantId": tenant})
        assert lead is not None
        async with application(w, tenant) as app:
            await app.execute("UPDATE leads SET name = 'sent' WHERE id = $1", lead["_id"])
        await bring(w, tenant, "mongo")
        await w.mongo["leads"].update_one({"_id": lead["_id"]}, {"$set": {"tenantId": other}})
        await w.settled()
        await bring(w, tenant, "postgres")
        await w.spoil("UPDATE leads SET name = 'not yet' WHERE id = $1", lead["_id"])
        code, told = await once(w, "rollback", str(tenant), "--window", "0")
        assert code == 0, told
        assert await w.value("SELECT count(*) FROM crossfade.outbox") == 0
        await brought_back(w)
        found = await w.mongo["leads"].find_one({"_id": lead["_id"]})
        assert found is not None and found["tenantId"] == other


async def _sent_and_lost(w: World, tenant: UUID, lead: UUID, name: str) -> None:
    """Change a lead in PostgreSQL; Kafka takes it, and loses it before MongoDB has it."""
    async with await w.client.start_session() as session:
        session.start_transaction()
        set_ = {"q": {"_id": lead}, "u": {"$set": {"busy": True}}}
        busy = {**_BUSY, "updates": [set_]}
        codec = w.mongo.codec_options
        await w.mongo.command(busy, session=session, codec_options=codec)  # nobody else can write it
        async with application(w, tenant) as app:
            await app.execute("UPDATE leads SET name = $2 WHERE id = $1", lead, name)
        await w.until_value("SELECT (count(*) = 0)::integer FROM crossfade.outbox", 1)
        await w.kill("reverse")
        await empty(w, f"{w.name}.reverse.{w.name}.leads")
        await session.abort_transaction()
    await w.start("reverse", "reverse")

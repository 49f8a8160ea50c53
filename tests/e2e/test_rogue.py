"""What a raw client writes in MongoDB for a tenant that has left it, and what waits while it comes home."""

from __future__ import annotations

from datetime import UTC, datetime
from pathlib import Path
from typing import Any
from uuid import UUID

from aiokafka import AIOKafkaProducer

from tests.e2e.test_way_back import at_rest
from tests.support.way_back import (
    application,
    assert_both_ways_equal,
    brought_back,
    outcomes,
    set_phase,
)
from tests.support.world import PARTITIONS, World, world
from topics import Event, Operation, Origin, Source, Version, document_key, encode, partition_of
from worker.embedded import Services

LETTERS = "SELECT count(*) FROM crossfade.dead_letter WHERE kind = $1 AND state::text = $2"


async def written_raw(w: World, tenant: UUID, other: UUID) -> int:
    """Update, delete, move to another tenant, and insert, also what cannot be mapped; return how many writes
    there were.
    """
    users = w.mongo["users"]
    one, two, three, four, five = await users.find({"tenantId": tenant}).limit(5).to_list(5)
    await users.update_one({"_id": one["_id"]}, {"$set": {"name": "raw"}})
    await users.delete_one({"_id": two["_id"]})
    await users.update_one({"_id": three["_id"]}, {"$set": {"tenantId": other}})
    await users.insert_one({**one, "_id": UUID(int=7), "email": "raw@x"})
    await users.update_one({"_id": four["_id"]}, {"$unset": {"tenantId": 1}})
    await users.update_one({"_id": five["_id"]}, {"$set": {"email": {"no": "text"}}})
    await users.insert_one({**one, "_id": UUID(int=8), "email": ["no", "text"]})
    return 7


async def test_what_a_raw_client_writes_is_kept_and_undone(services: Services, tmp_path: Path) -> None:
    async with world(services, tmp_path) as w:
        tenant, other = await at_rest(w)
        rows = await w.value("SELECT jsonb_object_agg(id, xmin::text) FROM users")
        writes = await written_raw(w, tenant, other)
        await w.settled()
        await brought_back(w)
        await w.settled()
        assert await w.value(LETTERS, "rogue", "dead") == writes
        own = "SELECT count(*) FROM crossfade.dead_letter WHERE tenant_id = $1"
        assert await w.value(own, tenant) == writes  # also of the one that names another
        assert await w.value("SELECT bool_and(octet_length(event) > 0) FROM crossfade.dead_letter")
        assert await w.value("SELECT jsonb_object_agg(id, xmin::text) FROM users") == rows
        await w.execute("DELETE FROM crossfade.dead_letter")  # whose documents are not compared
        await assert_both_ways_equal(w)
        assert (await outcomes(w))["dead_lettered"] == writes


async def test_a_document_born_in_postgresql_and_deleted_in_mongodb_at_home_is_gone(
    services: Services, tmp_path: Path
) -> None:
    """The delete is read together with its echo, and must not hide it."""
    async with world(services, tmp_path) as w:
        tenant, _ = await at_rest(w)
        await w.stop("apply")
        ids: list[UUID] = []
        async with application(w, tenant) as sql:
            for number in range(3):
                born = "INSERT INTO users (tenant_id, email) VALUES ($1, $2) RETURNING id"
                made: Any = await sql.fetchval(born, tenant, f"born{number}@x")
                ids.append(made)
        await brought_back(w)
        await w.published()
        assert await w.mongo["users"].count_documents({"_id": {"$in": ids}}) == 3
        await set_phase(w, "mongo")
        await w.mongo["users"].delete_many({"_id": {"$in": ids}})
        await w.published()
        await w.start("apply", "apply")
        await w.settled()
        assert await w.value("SELECT count(*) FROM users WHERE id = ANY($1)", ids) == 0
        known = "SELECT count(*) FROM crossfade.document WHERE row_id = ANY($1) AND tenant_id = $2"
        assert await w.value(known, ids, tenant) == 3
        await assert_both_ways_equal(w)


async def test_the_echo_that_comes_behind_the_delete_of_its_document_brings_the_tenant(
    services: Services, tmp_path: Path
) -> None:
    async with world(services, tmp_path) as w:
        tenant, _ = await at_rest(w)
        await w.published()
        await w.kill("publish")
        async with application(w, tenant) as sql:
            made: Any = await sql.fetchval(
                "INSERT INTO users (tenant_id, email) VALUES ($1, 'born@x') RETURNING id", tenant
            )
        born = UUID(int=made.int)
        await brought_back(w)
        await set_phase(w, "mongo")
        await w.mongo["users"].delete_one({"_id": born})
        at = (await w.mongo.command("ping"))["operationTime"]
        incarnation = await w.value("SELECT incarnation FROM crossfade.checkpoint")
        gone = Event(
            operation=Operation.DELETE,
            namespace=f"{w.name}.users",
            id=born,
            version=Version.snapshot(at),
            wall=datetime.now(UTC),
            source=Source.REPAIR,
            origin=Origin(UUID(int=incarnation.int)),
        )
        key = document_key(born)
        async with AIOKafkaProducer(bootstrap_servers=w.kafka) as producer:
            topic, place = f"{w.name}.{w.name}.users", partition_of(key, PARTITIONS)
            await producer.send_and_wait(topic, encode(gone), key=key, partition=place)
        tombstone = f"SELECT count(*) FROM crossfade.document WHERE row_id = '{born}' AND tenant_id IS NULL"
        await w.until_value(tombstone, 1)
        assert await w.value("SELECT count(*) FROM users WHERE id = $1", born) == 1  # which nobody sees
        await w.start("publish", "publish again")
        await w.settled()
        assert await w.value(tombstone) == 0
        await assert_both_ways_equal(w)


async def test_what_comes_while_a_tenant_is_rolled_back_waits_until_that_is_decided(
    services: Services, tmp_path: Path
) -> None:
    async with world(services, tmp_path) as w:
        tenant, _ = await at_rest(w)
        users = w.mongo["users"]
        one, two = await users.find({"tenantId": tenant}).limit(2).to_list(2)
        await set_phase(w, "rolling_back", tenant)
        await users.update_one({"_id": one["_id"]}, {"$set": {"name": "too early"}})
        await w.until_value(LETTERS.replace("$1", "'rolling_back'").replace("$2", "'parked'"), 1)
        before = await w.value("SELECT name FROM users WHERE id = $1", one["_id"])
        assert before == one["name"]
        await set_phase(w, "postgres", tenant)  # not rolled back after all: it is rogue, and undone
        await w.until_value(LETTERS.replace("$1", "'rogue'").replace("$2", "'dead'"), 1)
        await brought_back(w)
        found = await users.find_one({"_id": one["_id"]})
        assert found is not None and found["name"] == one["name"]
        await set_phase(w, "rolling_back", tenant)
        await users.update_one({"_id": two["_id"]}, {"$set": {"name": "after the snapshot"}})
        await w.until_value(LETTERS.replace("$1", "'rolling_back'").replace("$2", "'parked'"), 1)
        await set_phase(w, "mongo", tenant)  # above the floor: done at home
        await w.settled()
        assert await w.value("SELECT name FROM users WHERE id = $1", two["_id"]) == "after the snapshot"


async def test_records_of_the_way_back_that_come_again_change_nothing(
    services: Services, tmp_path: Path
) -> None:
    async with world(services, tmp_path) as w:
        tenant, _ = await at_rest(w)
        for number in range(5):
            async with application(w, tenant) as sql:
                await sql.execute("UPDATE users SET login_count = $1", number)
        await brought_back(w)
        # Home again, and written there: an old record of the way back must not undo it.
        await set_phase(w, "mongo")
        await w.mongo["users"].update_many({"tenantId": tenant}, {"$set": {"loginCount": 77}})
        assert await w.send_again(lambda name: name.startswith(f"{w.name}.reverse."), seed=4) > 0
        await brought_back(w)
        await w.settled()
        assert await w.mongo["users"].count_documents({"tenantId": tenant, "loginCount": {"$ne": 77}}) == 0
        await assert_both_ways_equal(w)

"""What apply notes in a batch's transaction for tenants that move."""

from __future__ import annotations

from datetime import UTC, datetime
from pathlib import Path
from uuid import UUID, uuid4

from aiokafka import AIOKafkaProducer
from bson import Timestamp

from tests.support.world import PARTITIONS, World, world
from topics import Event, Operation, Origin, Source, Version, document_key, encode
from worker.embedded import Services


async def _send(w: World, topic: str, id_: object, incarnation: UUID) -> None:
    """Send a barrier with this id to every partition of a topic."""
    event = Event(
        operation=Operation.BARRIER,
        namespace="",
        id=id_,
        version=Version.of(Timestamp(1, 1), 0),
        wall=datetime.now(UTC),
        source=Source.STREAM,
        origin=Origin(incarnation),
    )
    producer = AIOKafkaProducer(bootstrap_servers=w.kafka)
    await producer.start()
    try:
        for partition in range(PARTITIONS):
            await producer.send_and_wait(topic, encode(event), key=document_key("b"), partition=partition)
    finally:
        await producer.stop()


async def test_barriers_and_what_changes_while_a_tenant_drains_are_noted_with_the_batch(
    services: Services, tmp_path: Path
) -> None:
    async with world(services, tmp_path) as w:
        await w.load(400, tenants=2)
        await w.start("publish", "publish")
        await w.start("apply", "apply")
        await w.settled()
        first, second = await w.mongo["leads"].distinct("tenantId")
        await w.execute(
            "UPDATE crossfade.tenant SET phase = 'draining', epoch = 7 WHERE tenant_id = $1", first
        )
        changed = await w.mongo["leads"].find_one({"tenantId": first})
        other = await w.mongo["leads"].find_one({"tenantId": second})
        assert changed is not None and other is not None
        for lead in (changed, other):
            await w.mongo["leads"].update_one({"_id": lead["_id"]}, {"$set": {"name": "changed"}})
        gone = await w.mongo["leads"].find_one_and_delete({"tenantId": first, "_id": {"$ne": changed["_id"]}})
        assert gone is not None
        barrier, incarnation = uuid4(), uuid4()
        await _send(w, f"{w.name}.{w.name}.leads", {"barrier": barrier, "partitions": 2}, incarnation)
        await _send(w, f"{w.name}.{w.name}.leads", {"barrier": barrier, "partitions": 2}, incarnation)
        await _send(w, f"{w.name}.{w.name}.leads", "of another form", incarnation)
        await w.settled()
        connection = await w.connect()
        rows = await connection.fetch(
            "SELECT tenant_id, epoch, row_id FROM crossfade.draining_document JOIN crossfade.collection "
            "USING (collection_id) WHERE namespace = $1",
            f"{w.name}.leads",
        )
        assert {tuple(row) for row in rows} >= {(first, 7, changed["_id"]), (first, 7, gone["_id"])}
        assert {row["tenant_id"] for row in rows} == {first}
        rows = await connection.fetch("SELECT * FROM crossfade.barrier ORDER BY partition")
        assert [tuple(row)[:5] for row in rows] == [
            (barrier, f"{w.name}.{w.name}.leads", partition, 2, incarnation)
            for partition in range(PARTITIONS)
        ]
        await connection.close()

"""Bad input and missing services: a dead letter or one clear line, and nothing is lost."""

from __future__ import annotations

from pathlib import Path

import pytest
from aiokafka import AIOKafkaConsumer, AIOKafkaProducer, TopicPartition

from examples.spaces.comparison import differences
from examples.spaces.generate import Generator
from tests.support.world import World, once, world
from worker.embedded import Services


async def test_an_unmappable_document_is_a_dead_letter_and_its_neighbours_arrive(
    services: Services, tmp_path: Path
) -> None:
    async with world(services, tmp_path) as w:
        await Generator(3).load(w.mongo, tenants=2, documents=400)
        page = await w.mongo["pages"].find_one_and_update({}, {"$set": {"title": {"no": "text"}}})
        await w.start("publish", "publish")
        await w.start("apply", "apply")
        await w.settled()
        connection = await w.connect()
        letters = await connection.fetch("SELECT * FROM crossfade.dead_letter")
        assert [(letter["kind"], letter["namespace"]) for letter in letters] == [
            ("mapping", f"{w.name}.pages")
        ]
        assert "title" in letters[0]["reason"] and "text" in letters[0]["reason"]
        assert await differences(w.mongo, connection) == [f"pages {page['_id']}: missing"]
        await connection.close()


async def test_old_records_read_again_change_nothing_and_are_counted_superseded(
    services: Services, tmp_path: Path
) -> None:
    async with world(services, tmp_path) as w:
        await Generator(3).load(w.mongo, tenants=2, documents=400)
        await w.start("publish", "publish")
        await w.start("apply", "apply")
        await w.settled()
        await w.mongo["leads"].update_many(
            {}, {"$set": {"email": "new@example.com"}, "$unset": {"activities": 1}}
        )
        await w.mongo["pages"].delete_many({})
        await w.settled()
        sent = await _send_again_in_reverse(w)
        await w.settled()
        connection = await w.connect()
        assert await differences(w.mongo, connection) == []
        assert await connection.fetchval("SELECT count(*) FROM pages") == 0
        superseded = await connection.fetchval("SELECT sum(superseded) FROM crossfade.partition_progress")
        assert superseded >= sent > 0
        await connection.close()


async def _send_again_in_reverse(w: World) -> int:
    """Send every copied record once more, the last first."""
    topics = [f"{w.name}.{w.name}.{name}.copy" for name in ("pages", "leads")]
    consumer = AIOKafkaConsumer(bootstrap_servers=w.services.kafka_bootstrap, auto_offset_reset="earliest")
    producer = AIOKafkaProducer(bootstrap_servers=w.services.kafka_bootstrap)
    await consumer.start()
    await producer.start()
    partitions = [TopicPartition(topic, number) for topic in topics for number in (0, 1)]
    consumer.assign(partitions)
    left = sum((await consumer.end_offsets(partitions)).values())
    records = [await consumer.getone() for _ in range(left)]
    for record in reversed(records):
        await producer.send_and_wait(record.topic, record.value, key=record.key, partition=record.partition)
    await consumer.stop()
    await producer.stop()
    return left


NOWHERE = "127.0.0.1:9"


@pytest.mark.parametrize(
    ("role", "env", "told"),
    [
        ("publish", {"CROSSFADE_MONGO_URI": f"mongodb://{NOWHERE}/"}, "MongoDB"),
        (
            "publish",
            {"CROSSFADE_KAFKA_BOOTSTRAP": NOWHERE, "CROSSFADE_ALLOW_MISSING_COLLECTIONS": "true"},
            "Kafka",
        ),
        ("apply", {"CROSSFADE_KAFKA_BOOTSTRAP": NOWHERE}, "Kafka"),
        ("publish", {"CROSSFADE_POSTGRES_DSN": f"postgresql://x:s3cret@{NOWHERE}/x"}, "PostgreSQL"),
        ("apply", {"CROSSFADE_POSTGRES_DSN": f"postgresql://x:s3cret@{NOWHERE}/x"}, "PostgreSQL"),
        ("apply", {"CROSSFADE_MAPPING": "nowhere.yaml"}, "mapping"),
        ("publish", {}, "collections that database"),
        ("apply", {"CROSSFADE_APPLY_BATCH": "many"}, "CROSSFADE_APPLY_BATCH"),
    ],
)
async def test_what_is_wrong_at_start_is_one_clear_line_and_exit_2(
    services: Services, tmp_path: Path, role: str, env: dict[str, str], told: str
) -> None:
    async with world(services, tmp_path) as w:
        code, output = await once(w, role, **env)
        lines = [line for line in output.splitlines() if not line.startswith("{")]
        assert code == 2, output
        assert "Traceback" not in output and "s3cret" not in output
        assert len(lines) == 1 and told in lines[0], output

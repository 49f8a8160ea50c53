"""Documents that a topic does not take: their events carry none, and apply reads them from MongoDB."""

from __future__ import annotations

import random
from datetime import UTC, datetime
from pathlib import Path
from typing import Any
from uuid import uuid4

import pytest
from aiokafka import AIOKafkaProducer
from bson import Timestamp

from tests.support.hands import configure, make_topic
from tests.support.letters import letters
from tests.support.proxy import proxy
from tests.support.world import PARTITIONS, World, once, world
from topics import Event, Operation, Origin, Source, Version, decode, document_key, encode
from worker.embedded import Services

KB, MB = 1024, 1024 * 1024
# Left by MongoDB and PostgreSQL as long as it is: nothing compresses it.
NOISE = random.Random(7).randbytes(MB).hex()


async def operations(w: World, collection: str) -> dict[str, int]:
    """Count what lies in a collection's topics, by operation and source."""
    counts: dict[str, int] = {}
    own = f"{w.name}.{w.name}.{collection}"
    async with w._consumer(lambda name: name in (own, f"{own}.copy")) as (consumer, partitions):
        await consumer.seek_to_beginning()
        for _ in range(sum((await consumer.end_offsets(partitions)).values())):
            event = decode((await consumer.getone()).value)
            if not event.control:
                assert (event.document is None) == (event.operation != "upsert")
                name = f"{event.operation} {event.source}"
                counts[name] = counts.get(name, 0) + 1
    return counts


def reference_to_the_future(w: World, document_id: Any) -> Event:
    return Event(
        operation=Operation.REFERENCE,
        namespace=f"{w.name}.pages",
        id=document_id,
        version=Version.of(Timestamp(2**31 - 1, 1), 0),
        wall=datetime.now(UTC),
        source=Source.STREAM,
        origin=Origin(uuid4()),
        size=7,
    )


async def send(w: World, event: Event) -> None:
    producer = AIOKafkaProducer(bootstrap_servers=w.kafka)
    await producer.start()
    await producer.send_and_wait(f"{w.name}.{event.namespace}", encode(event), key=document_key(event.id))
    await producer.stop()


async def absent(w: World) -> int:
    return await w.value("SELECT coalesce(sum(absent), 0)::int FROM crossfade.partition_progress")


async def some(w: World, collection: str, count: int, size: int) -> list[dict[str, Any]]:
    """Make documents larger than that of the application's they resemble."""
    like = await w.mongo[collection].find_one({})
    made = [{**like, "_id": uuid4(), "filler": NOISE[:size]} for _ in range(count)]
    await w.mongo[collection].insert_many(made)
    return made


@pytest.mark.timeout(600)
async def test_what_a_topic_does_not_take_is_read_from_mongodb(services: Services, tmp_path: Path) -> None:
    async with world(services, tmp_path) as w, proxy(_port(services.mongo_uri)) as mongodb:
        for name in (f"{w.name}.pages", f"{w.name}.pages.copy", f"{w.name}.users"):
            await make_topic(
                services.kafka_bootstrap, f"{w.name}.{name}", PARTITIONS, max_message_bytes=str(100 * KB)
            )
        await w.load(300)
        await w.mongo["users"].drop_indexes()
        images = {"changeStreamPreAndPostImages": {"enabled": True}}  # so that each update has its event
        await w.mongo.command({"collMod": "pages", **images})
        large = await some(w, "pages", 20, 300 * KB)
        narrow = {"CROSSFADE_KAFKA_LARGEST_RECORD": str(400 * KB)}
        await some(w, "leads", 1, 500 * KB)  # its topic would take it
        through = {"CROSSFADE_MONGO_URI": f"mongodb://127.0.0.1:{mongodb.port}/?directConnection=true"}
        await w.start("publish", "publish", **narrow)
        await w.start("apply", "apply", **through)
        await w.settled(240)
        await w.assert_nothing_lost()
        assert (await operations(w, "leads"))["reference copy"] == 1
        counts = await operations(w, "pages")
        assert counts["reference copy"] == 20 and counts["upsert copy"] > 20
        assert await absent(w) == 0

        # changed while apply cannot see MongoDB: what it then finds is newer, or gone
        before = (await w.mongo.command({"profile": 2}))["operationTime"]
        mongodb.refuses = True
        mongodb.cut()
        ids = [one["_id"] for one in large]
        await w.mongo["pages"].update_many({"_id": {"$in": ids}}, {"$set": {"title": "once"}})
        await w.mongo["pages"].update_many({"_id": {"$in": ids[:10]}}, {"$set": {"title": "twice"}})
        await w.mongo["pages"].update_one({"_id": ids[0]}, {"$unset": {"filler": ""}})
        await w.mongo["pages"].delete_many({"_id": {"$in": ids[15:]}})
        await w.published()
        log = tmp_path / "apply.log"
        await w.until("apply waits", lambda: "documents not read yet" in log.read_text())
        assert await w.value("SELECT count(*) FROM pages WHERE title = 'once'") == 0
        mongodb.refuses = False
        await w.settled(240)
        await w.assert_nothing_lost()
        assert await absent(w) == 5
        assert (await operations(w, "pages"))["reference stream"] == 30

        # never older than the event (docs/protocol.md C5)
        await w.mongo.command({"profile": 0})
        mine = {"appName": "crossfade apply", "command.find": "pages"}
        concerns = [one["command"]["readConcern"] async for one in w.mongo["system.profile"].find(mine)]
        assert concerns and all(one["level"] == "majority" for one in concerns)
        assert all(one["afterClusterTime"] > before for one in concerns)

        # parked, and read again when it is tried again
        one, other = (
            (await some(w, "users", 1, 300 * KB))[0],
            await w.mongo["users"].find_one({"filler": None}),
        )
        await w.until_value("SELECT count(*) FROM crossfade.dead_letter WHERE state = 'parked'", 1)
        await w.mongo["users"].update_one({"_id": other["_id"]}, {"$set": {"email": "free@x.io"}})
        await w.settled(240)
        assert [letter["state"] for letter in await letters(w)] == ["healed"]
        assert await w.value("SELECT count(*) FROM users WHERE id = $1", one["_id"]) == 1

        # what MongoDB refuses to read holds up nothing else
        await send(w, reference_to_the_future(w, ids[1]))
        await w.until_value("SELECT count(*) FROM crossfade.dead_letter WHERE kind = 'reference'", 1)
        letter = next(one for one in await letters(w) if one["kind"] == "reference")
        assert letter["state"] == "dead" and "InvalidOptions" in letter["reason"]
        number = str(letter["dead_letter_id"])
        assert (await once(w, "dead-letters", "discard", number, "--reason", "made up"))[0] == 0

        # the topic's limit shrinks under a running publisher: one start is enough
        await configure(services.kafka_bootstrap, f"{w.name}.{w.name}.pages", max_message_bytes=str(20 * KB))
        await some(w, "pages", 3, 60 * KB)
        assert await w.ended("publish") == 1
        assert "MessageSizeTooLarge" in (tmp_path / "publish.log").read_text()
        await w.start("publish", "publish again", **narrow)
        await w.settled(240)
        await w.assert_nothing_lost()
        assert (await operations(w, "pages"))["reference stream"] == 34  # one was made up


@pytest.mark.timeout(600)
async def test_documents_of_16_mb_pass_through_the_topics_as_they_are_made(
    services: Services, tmp_path: Path
) -> None:
    async with world(services, tmp_path) as w:
        await w.load(100)
        body = (NOISE * 8)[: 16 * MB - 8 * KB]
        like = await w.mongo["pages"].find_one({})
        copied, streamed = uuid4(), uuid4()
        await w.mongo["pages"].insert_one({**like, "_id": copied, "filler": body})
        await w.start("publish", "publish")
        await w.start("apply", "apply")
        await w.settled(240)
        await w.mongo["pages"].insert_one({**like, "_id": streamed, "filler": body})
        await w.mongo["pages"].update_one({"_id": copied}, {"$set": {"title": "changed"}})
        await w.settled(240)
        await w.assert_nothing_lost()
        assert not [name for name in await operations(w, "pages") if "reference" in name]


def _port(uri: str) -> int:
    return int(uri.split("/")[2].rpartition(":")[2])

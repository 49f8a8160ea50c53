"""A removal begins only once the stream has come past the copy's begin (docs/protocol.md C7)."""

from __future__ import annotations

from pathlib import Path
from uuid import UUID, uuid4

from tests.support.hands import make_topic
from tests.support.offsets import ends
from tests.support.things import things
from tests.support.world import PARTITIONS, World
from topics import Collection
from worker.broker.access import Access
from worker.broker.producer import Producer, Takes
from worker.embedded import Services
from worker.mapping import hashes
from worker.mongo.heartbeat import Heartbeat
from worker.postgres.checkpoints import Checkpoints
from worker.postgres.migration_log import pass_over
from worker.publish.real_collections import RealCollections
from worker.publish.removal import Removal
from worker.publish.target import Incarnation, Target

ROOM = 1024 * 1024


async def test_nothing_is_removed_before_kafka_has_all_that_came_before_the_copy(
    services: Services, tmp_path: Path
) -> None:
    async with things(services, tmp_path, "first") as w:
        collection = Collection(w.name, "first")
        stream, copy = f"{w.name}.{collection}", f"{w.name}.{collection}.copy"
        for topic in (stream, copy):
            await make_topic(w.kafka, topic, PARTITIONS)
        kafka = Access(w.kafka)
        checkpoints = Checkpoints(w.env["CROSSFADE_POSTGRES_DSN"], w.name)
        producer = Producer(kafka, "test", {topic: Takes(PARTITIONS, ROOM) for topic in (stream, copy)})
        await checkpoints.open()
        await producer.start()
        await checkpoints.agree(hashes(w.mapping))
        began = await Heartbeat(w.client, w.name).beat()
        time = began.time << 32 | began.inc
        checkpoint = await checkpoints.create(uuid4(), time - 1)
        await _know(w, collection, time - 1)
        sent: list[int] = []

        async def still_wanted() -> None:
            sent.append(sum((await ends(w)).values()))
            if len(sent) == 3:
                await checkpoints.save_token(checkpoint.incarnation, b"", time, 0)
            if sent[-3:] == [1, 1, 1]:
                connection = await w.connect()
                await pass_over(connection, [("", copy, partition, 1) for partition in range(PARTITIONS)])
                await connection.close()

        real = RealCollections(w.client, checkpoints, w.mapping.sources())
        removal = Removal(kafka, w.client, producer, checkpoints, real)
        target = Target(collection, str(collection), stream, copy, *[PARTITIONS] * 2, ROOM, ROOM)
        gone = await removal.run(target, Incarnation.of(checkpoint.incarnation, time - 1), time, still_wanted)
        await producer.stop()
        await checkpoints.close()
        assert gone == 1 and sum((await ends(w)).values()) == 1
        # The fourth asks before the document is looked for; the others, until apply has its delete.
        assert sent == [0, 0, 0, 0, 1, 1, 1]


async def _know(w: World, collection: Collection, time: int) -> None:
    """Let the ledger know a document that MongoDB does not have."""
    await w.value(
        """INSERT INTO crossfade.document
            (collection_id, row_id, tenant_id, version_time, version_order, state, batch_id)
        SELECT collection_id, $2, $3, $4, 0, 'live', 0 FROM crossfade.collection WHERE namespace = $1""",
        str(collection),
        UUID(int=0),  # the lowest, of which an application may make a document of its own
        uuid4(),
        time,
    )

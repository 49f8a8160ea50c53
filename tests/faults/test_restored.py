"""PostgreSQL comes back in an older state: what it lacks is read again, or copied (PROTOCOL.md A2)."""

from __future__ import annotations

from pathlib import Path

import pytest
from aiokafka.admin import AIOKafkaAdminClient, RecordsToDelete

from tests.support.long import LONG
from tests.support.own_postgres import Backup, own_postgres
from tests.support.world import World, world
from worker.embedded import Services


async def _use(w: World, seed: int) -> None:
    """Let the application insert, change and delete."""
    async with w.writes(150, seed=seed) as writer:
        await w.until("writes", lambda: writer.counters.changes > 250)


def _log(w: World, name: str) -> str:
    return (w.directory / f"{name}.log").read_text()


@pytest.mark.timeout(600)
async def test_an_older_postgresql_catches_up_by_itself(services: Services, tmp_path: Path) -> None:
    async with (
        own_postgres(services, tmp_path / "own") as own,
        world(own, tmp_path / "world") as w,
    ):
        backup = Backup(own)
        await w.load(600)
        await w.start("run", "run")
        await w.settled()
        await backup.take()
        await _use(w, 1)
        await w.settled()
        await backup.restore()  # of processes that run, with Kafka's offsets far ahead
        await _use(w, 2)
        await w.settled(180)
        await w.assert_nothing_lost()
        assert "PostgreSQL is older than what this worker wrote" in _log(w, "run")
        assert await w.value("SELECT max(copies) FROM crossfade.collection") == 1  # Kafka had it all

        # As where the change stream has begun anew since the backup.
        connection = await w.connect()
        await connection.execute("UPDATE crossfade.checkpoint SET incarnation = gen_random_uuid()")
        await connection.close()
        await w.until("told", lambda: "the checkpoint is no longer this publisher's" in _log(w, "run"))
        await w.settled(180)

        assert await w.stop("run") == 0
        assert "Traceback" not in _log(w, "run")


@pytest.mark.skipif(not LONG, reason="a long form; that records are gone is told by test_gaps.py too")
@pytest.mark.timeout(600)
async def test_an_older_postgresql_is_copied_again_where_kafka_has_nothing_more(
    services: Services, tmp_path: Path
) -> None:
    async with (
        own_postgres(services, tmp_path / "own") as own,
        world(own, tmp_path / "world") as w,
    ):
        backup = Backup(own)
        await w.load(600)
        await w.start("run", "run")
        await w.settled()
        await backup.take()
        await _use(w, 1)
        await w.settled(180)
        assert await w.stop("run") == 0
        await _forget(w)
        await backup.restore()
        await w.start("run", "run again")
        await w.until_value("SELECT min(copies) FROM crossfade.collection", 2)
        await w.settled(180)
        await w.assert_nothing_lost()
        assert "Kafka no longer has records" in _log(w, "run again")
        assert await w.stop("run again") == 0
        assert "Traceback" not in _log(w, "run") + _log(w, "run again")


async def _forget(w: World) -> None:
    """Delete every record, as retention does in time."""
    async with w._consumer() as (consumer, partitions):
        ends = await consumer.end_offsets(partitions)
    admin = AIOKafkaAdminClient(bootstrap_servers=w.services.kafka_bootstrap)
    await admin.start()
    await admin.delete_records({place: RecordsToDelete(before_offset=end) for place, end in ends.items()})
    await admin.close()

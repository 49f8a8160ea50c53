"""PostgreSQL comes back in an older state: what it lacks is read again, or copied (PROTOCOL.md A2)."""

from __future__ import annotations

from pathlib import Path

import pytest
from aiokafka.admin import AIOKafkaAdminClient, RecordsToDelete

from tests.support.own_postgres import Backup, own_postgres
from tests.support.world import World, world
from worker.embedded import Services

DAMAGED = b"\x00\x01"  # a token


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

        # The change stream has begun anew since the backup.
        await backup.take()
        assert await w.stop("run") == 0
        connection = await w.connect()
        await connection.execute("UPDATE crossfade.checkpoint SET token = $1", DAMAGED)
        await connection.close()
        await _use(w, 3)
        await w.start("run", "run again")
        await w.until_value("SELECT incarnations FROM crossfade.checkpoint", 2)
        await w.settled(180)
        await backup.restore()
        await _use(w, 4)
        await w.settled(180)
        await w.assert_nothing_lost()
        assert "the checkpoint is no longer this publisher's" in _log(w, "run again")

        # Kafka does not have it any more either.
        await backup.take()
        await _use(w, 5)
        await w.settled(180)
        assert await w.stop("run again") == 0
        await _forget(w)
        await backup.restore()
        await w.start("run", "run at last")
        await w.until_value("SELECT min(copies) FROM crossfade.collection", 2)
        await w.settled(180)
        await w.assert_nothing_lost()
        assert "Kafka no longer has records" in _log(w, "run at last")
        assert await w.stop("run at last") == 0
        assert "Traceback" not in "".join(_log(w, name) for name in ("run", "run again", "run at last"))


async def _forget(w: World) -> None:
    """Delete every record, as retention does in time."""
    async with w._consumer() as (consumer, partitions):
        ends = await consumer.end_offsets(partitions)
    admin = AIOKafkaAdminClient(bootstrap_servers=w.services.kafka_bootstrap)
    await admin.start()
    await admin.delete_records({place: RecordsToDelete(before_offset=end) for place, end in ends.items()})
    await admin.close()

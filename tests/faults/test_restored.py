"""PostgreSQL comes back in an older state: what it lacks is read again, or copied (docs/protocol.md A2)."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest
from aiokafka.admin import RecordsToDelete

from tests.support.hands import administering
from tests.support.long import LONG
from tests.support.own_postgres import Backup, own_postgres
from tests.support.pooler import pooler, switching
from tests.support.world import World, world
from worker.embedded import Services


async def _use(w: World, seed: int) -> None:
    """Let the application insert, change and delete."""
    async with w.writes(150, seed=seed) as writer:
        await w.until("writes", lambda: writer.counters.changes > 250)


@asynccontextmanager
async def _world(services: Services, directory: Path) -> AsyncIterator[tuple[World, Backup]]:
    async with own_postgres(services, directory / "own") as own, world(own, directory / "world") as w:
        await w.load(600)
        yield w, Backup(own)


async def _use_beyond(w: World, backup: Backup) -> None:
    """Take a backup of what is in step, and let the application and all roles go on."""
    await w.start("run", "run")
    await w.settled()
    await backup.take()
    await _use(w, 1)
    await w.settled(180)


def _log(w: World, name: str) -> str:
    return (w.directory / f"{name}.log").read_text()


@pytest.mark.timeout(600)
async def test_an_older_postgresql_catches_up_by_itself(services: Services, tmp_path: Path) -> None:
    async with _world(services, tmp_path) as (w, backup):
        await _use_beyond(w, backup)
        await backup.restore()  # of processes that run, with Kafka's offsets far ahead
        await _use(w, 2)
        await w.settled(180)
        await w.assert_nothing_lost()
        assert "PostgreSQL is older than what this worker wrote" in _log(w, "run")
        assert await w.value("SELECT max(copies) FROM crossfade.collection") == 1  # Kafka had it all

        # As where the change stream has begun anew since the backup.
        await w.execute("UPDATE crossfade.checkpoint SET incarnation = gen_random_uuid()")
        await w.until("told", lambda: "the checkpoint is no longer this publisher's" in _log(w, "run"))
        await w.settled(180)

        assert await w.stop("run") == 0
        assert "Traceback" not in _log(w, "run")


@pytest.mark.timeout(600)
async def test_an_older_postgresql_behind_a_pooler_catches_up_by_itself(
    services: Services, tmp_path: Path
) -> None:
    """The pooler keeps apply's connection, whose next transaction is the other PostgreSQL's."""
    async with _world(services, tmp_path) as (w, backup), pooler(w, 6) as port:
        w.env["CROSSFADE_POSTGRES_DSN"] = f"postgresql://crossfade_sync@127.0.0.1:{port}/{w.name}"
        await _use_beyond(w, backup)
        async with switching(port):
            await backup.restore()
        await w.settled(180)
        await w.assert_nothing_lost()
        assert "PostgreSQL lacks what came before these records" in _log(w, "run")
        assert await w.value("SELECT max(copies) FROM crossfade.collection") == 1
        assert await w.stop("run") == 0


@pytest.mark.timeout(400)
async def test_a_new_postgresql_beside_old_topics_is_rid_of_what_was_deleted_since(
    services: Services, tmp_path: Path
) -> None:
    async with _world(services, tmp_path) as (w, backup):
        await backup.take()  # of a database that has seen nothing yet
        await w.start("publish", "publish")
        await w.start("apply", "apply")
        await w.settled()
        assert await w.stop("publish") == 0
        assert await w.stop("apply") == 0
        await w.mongo["leads"].delete_many({})  # nobody tells
        await backup.restore()
        await w.start("publish", "publish")
        await w.start("apply", "apply")
        await w.settled()
        assert (await w.compare()).differences == []
        assert "copies end with a removal" in _log(w, "publish")


@pytest.mark.timeout(400)
async def test_an_older_postgresql_hears_again_of_a_collection_that_was_dropped_since(
    services: Services, tmp_path: Path
) -> None:
    async with _world(services, tmp_path) as (w, backup):
        await w.start("publish", "publish")
        await w.start("apply", "apply")
        await w.settled()
        await backup.take()
        await w.published()
        assert await w.stop("apply") == 0  # without it nothing is removed
        await w.mongo["forms"].drop()
        await w.until_value("SELECT count(*) FROM crossfade.collection WHERE copy_state = 'removing'", 1)
        await w.published()
        await backup.restore()
        assert await w.ended("publish") == 1
        await w.start("run", "run")
        await w.until_value("SELECT max(copies) FROM crossfade.collection", 2)
        await w.settled(180)
        assert (await w.compare()).differences == []
        assert await w.stop("run") == 0


@pytest.mark.skipif(not LONG, reason="a long form; that records are gone is told by test_gaps.py too")
@pytest.mark.timeout(600)
async def test_an_older_postgresql_is_copied_again_where_kafka_has_nothing_more(
    services: Services, tmp_path: Path
) -> None:
    async with _world(services, tmp_path) as (w, backup):
        await _use_beyond(w, backup)
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
    async with administering(w.kafka) as admin:
        await admin.delete_records({place: RecordsToDelete(before_offset=end) for place, end in ends.items()})

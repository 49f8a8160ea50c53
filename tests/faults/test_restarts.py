"""Services killed and started again under live writes: nothing is lost, and nobody has to help."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

import pytest
from pymongo.errors import PyMongoError

from examples.spaces.comparison import differences
from examples.spaces.generate import Generator
from tests.support.world import world
from worker.embedded import Services


async def _write(mongo: Any, stop: asyncio.Event) -> int:
    """Change leads and pages for ever; what a restart of MongoDB refuses is let go."""
    done = 0
    while not stop.is_set():
        try:
            await mongo["leads"].update_one(
                {"source": {"$exists": True}}, {"$set": {"email": f"e{done}@x.io"}}
            )
            await mongo["leads"].update_many(
                {"status": "new"}, {"$set": {"activities": [{"type": f"t{done}"}]}}
            )
            await mongo["pages"].delete_one({})
            done += 1
        except PyMongoError:
            await asyncio.sleep(0.1)
        await asyncio.sleep(0.02)
    return done


@pytest.mark.timeout(700)
async def test_mongod_kafka_and_postgres_killed_in_turn_under_writes(
    services: Services, tmp_path: Path
) -> None:
    async with world(services, tmp_path) as w:
        await Generator(5).load(w.mongo, tenants=5, documents=4000)
        stop = asyncio.Event()
        writing = asyncio.create_task(_write(w.mongo, stop))
        await w.start("run", "run")
        await w.settled(180)
        for name in ("postgres", "kafka", "mongod"):
            await services.kill(name)  # pyright: ignore[reportArgumentType]
            await asyncio.sleep(1)  # long enough that everybody meets it
            await services.start(name)  # pyright: ignore[reportArgumentType]
            await w.settled(180)
        stop.set()
        assert await writing > 20
        await w.settled(180)
        connection = await w.connect()
        assert await differences(w.mongo, connection) == []
        assert await connection.fetchval("SELECT count(*) FROM crossfade.dead_letter") == 0
        await connection.close()
        assert "Traceback" not in (tmp_path / "run.log").read_text()
        assert await w.stop("run") == 0

"""The real program, as processes, between real services."""

from __future__ import annotations

import asyncio
from pathlib import Path
from uuid import UUID

import pytest
from motor.motor_asyncio import AsyncIOMotorClient

from examples.spaces.comparison import differences
from examples.spaces.generate import Generator
from tests.support.world import world
from worker.embedded import Services


async def _write(mongo: AsyncIOMotorClient, tenants: list[UUID], stop: asyncio.Event) -> int:
    """Insert, change and delete pages and leads until told to stop."""
    changes = 0
    generator = Generator(99)
    while not stop.is_set():
        page = generator.page(changes) | {"tenantId": tenants[changes % len(tenants)]}
        await mongo["pages"].insert_one(page)
        lead = await mongo["leads"].find_one(skip=changes % 50)
        if lead:
            await mongo["leads"].update_one(
                {"_id": lead["_id"]},
                {
                    "$inc": {"score": 0.5},
                    "$set": {"activities": [{"type": f"call {changes}"}] * (changes % 4)},
                },
            )
        await mongo["pages"].update_one({"_id": page["_id"]}, {"$set": {"version": changes}})
        if changes % 3 == 0:
            await mongo["pages"].delete_one({"_id": page["_id"]})
        changes += 1
        await asyncio.sleep(0.005)
    return changes


@pytest.mark.parametrize("role", ["replica", "origin"])
async def test_copy_and_live_writes_arrive_whole_though_processes_are_killed(
    services: Services, tmp_path: Path, role: str
) -> None:
    async with world(services, tmp_path) as w:
        await Generator(7).load(w.mongo, tenants=5, documents=4000)
        tenants = [tenant["_id"] async for tenant in w.mongo["tenants"].find()]
        mode = {"CROSSFADE_REPLICATION_ROLE": role}
        stop = asyncio.Event()
        writing = asyncio.create_task(_write(w.mongo, tenants, stop))
        await w.start("publish", "publish")
        await w.start("apply", "apply one", **mode)
        await w.start("apply", "apply two", **mode)
        await asyncio.sleep(3)
        await w.kill("apply two")
        await w.kill("publish")
        await w.start("publish", "publish")
        await asyncio.sleep(2)
        await w.kill("publish")
        await w.start("publish", "publish")
        await asyncio.sleep(2)
        stop.set()
        assert await writing > 50
        await w.settled()
        connection = await w.connect()
        assert await differences(w.mongo, connection) == []
        assert (
            await connection.fetchval("SELECT count(*) FROM crossfade.dead_letter WHERE state = 'dead'") == 0
        )
        assert await connection.fetchval("SELECT count(*) FROM crossfade.batch") > 0
        await connection.close()
        assert await w.stop("publish") == 0
        assert await w.stop("apply one") == 0

"""The real program, as processes, between real services."""

from __future__ import annotations

import asyncio
import os
import signal
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from uuid import UUID, uuid4

import asyncpg
import pytest
from motor.motor_asyncio import AsyncIOMotorClient

from examples.spaces.comparison import differences
from examples.spaces.generate import Generator
from schema import migrate
from worker.embedded import Services

MAPPING = Path(__file__).parents[2] / "schema/spaces/mapping.yaml"


class World:
    """A fresh MongoDB database, PostgreSQL database and set of topics, and the processes between them."""

    def __init__(self, services: Services, directory: Path) -> None:
        self.name = f"w{uuid4().hex[:10]}"
        self.services, self.directory = services, directory
        self.client = AsyncIOMotorClient(services.mongo_uri, uuidRepresentation="standard", tz_aware=True)
        self.mongo = self.client[self.name]
        self.processes: dict[str, asyncio.subprocess.Process] = {}
        mapping = directory / "mapping.yaml"
        mapping.write_text(MAPPING.read_text().replace("database: spaces", f"database: {self.name}"))
        self.env = {
            **os.environ,
            **services.env(),
            "CROSSFADE_POSTGRES_DSN": services.dsn("crossfade_sync", self.name),
            "CROSSFADE_MAPPING": str(mapping),
            "CROSSFADE_TOPIC_PREFIX": self.name,
            "CROSSFADE_APPLY_GROUP": self.name,
            "CROSSFADE_PUBLISHER": self.name,
            "CROSSFADE_TOPIC_PARTITIONS": "2",
            "CROSSFADE_LOG_FORMAT": "json",
        }

    async def connect(self) -> asyncpg.Connection:
        return await asyncpg.connect(self.services.dsn("postgres", self.name))

    async def start(self, role: str, name: str, **env: str) -> None:
        with (self.directory / f"{name}.log").open("ab") as log:
            self.processes[name] = await asyncio.create_subprocess_exec(
                sys.executable, "-m", "worker", role, env=self.env | env, stderr=log, stdout=log
            )

    async def kill(self, name: str) -> None:
        process = self.processes.pop(name)
        if process.returncode is None:
            process.send_signal(signal.SIGKILL)
        await process.wait()

    async def stop(self, name: str) -> int:
        process = self.processes.pop(name)
        if process.returncode is None:
            process.terminate()
        return await asyncio.wait_for(process.wait(), 20)

    async def settled(self, seconds: float = 90) -> None:
        """Wait until a heartbeat newer than this call, and all copies, are applied."""
        marker = await self.mongo.command("serverStatus")
        connection = await self.connect()
        try:
            async with asyncio.timeout(seconds):
                while not await connection.fetchval(  # noqa: ASYNC110
                    """SELECT (SELECT count(*) = 12 AND min(heartbeat_at) > $1::timestamptz FROM
                           crossfade.partition_progress WHERE heartbeat_at IS NOT NULL)
                       AND (SELECT bool_and(copy_state = 'copied') FROM crossfade.collection)
                       AND (SELECT sum(copied) FROM crossfade.collection) <= (SELECT sum(records) FROM
                           crossfade.partition_progress WHERE topic LIKE '%.copy')
                       AND NOT EXISTS (SELECT FROM crossfade.dead_letter WHERE state = 'parked')""",
                    marker["localTime"],
                ):
                    await asyncio.sleep(0.2)
        except TimeoutError:
            logs = "".join(path.read_text()[-2000:] for path in self.directory.glob("*.log"))
            pytest.fail(f"not settled in {seconds} s\n{logs}")
        finally:
            await connection.close()


@asynccontextmanager
async def world(services: Services, directory: Path) -> AsyncIterator[World]:
    new = World(services, directory)
    admin = await asyncpg.connect(services.postgres_admin_dsn)
    await admin.execute(f'CREATE DATABASE "{new.name}"')
    await admin.close()
    connection = await new.connect()
    await migrate.apply(connection, "control")
    await migrate.apply(connection, "spaces")
    await connection.close()
    try:
        yield new
    finally:
        for name in list(new.processes):
            await new.kill(name)
        await new.client.drop_database(new.name)
        new.client.close()


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

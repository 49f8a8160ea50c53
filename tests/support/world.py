"""A world of its own for an end-to-end test: fresh databases and topics, and the program as processes."""

from __future__ import annotations

import asyncio
import os
import signal
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from uuid import uuid4

import asyncpg
import pytest
from motor.motor_asyncio import AsyncIOMotorClient

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


async def once(world: World, role: str, **env: str) -> tuple[int, str]:
    """Run a role that is expected to end by itself; return its exit code and what it told."""
    process = await asyncio.create_subprocess_exec(
        sys.executable,
        "-m",
        "worker",
        role,
        env=world.env | env,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.STDOUT,
    )
    output, _ = await asyncio.wait_for(process.communicate(), 60)
    return process.returncode or 0, output.decode()

"""mongods with options of a test's own, beside the shared one."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

from motor.motor_asyncio import AsyncIOMotorClient

from worker.embedded import prerequisites
from worker.embedded.state import free_port


@asynccontextmanager
async def mongod(directory: Path, *options: str) -> AsyncIterator[int]:
    """Run a mongod while the block runs; give its port, when it answers there."""
    program = prerequisites.mongod_program()
    await prerequisites.mongod_libraries(program, print)
    await asyncio.to_thread(directory.mkdir)
    port = free_port(set())
    common = ("--bind_ip", "127.0.0.1", "--nounixsocket", "--quiet", "--wiredTigerCacheSizeGB", "0.25")
    process = await asyncio.create_subprocess_exec(
        str(program),
        *("--dbpath", str(directory), "--port", str(port), *common, *options),
        stdout=asyncio.subprocess.DEVNULL,
    )
    try:
        async with direct(port) as client:
            await client.admin.command("hello")
        yield port
    finally:
        process.kill()
        await process.wait()


@asynccontextmanager
async def direct(port: int, user: str = "") -> AsyncIterator[AsyncIOMotorClient[dict[str, Any]]]:
    """Give a client of one mongod alone, whatever it is to its replica set. ``user``: `name:password@`."""
    client: AsyncIOMotorClient[dict[str, Any]] = AsyncIOMotorClient(direct_uri(port, user), tz_aware=True)
    try:
        yield client
    finally:
        client.close()


def direct_uri(port: int, user: str = "") -> str:
    return f"mongodb://{user}127.0.0.1:{port}/?directConnection=true"


async def until_primary(client: AsyncIOMotorClient[dict[str, Any]]) -> None:
    async with asyncio.timeout(60):
        while not (await client.admin.command("hello"))["isWritablePrimary"]:  # noqa: ASYNC110
            await asyncio.sleep(0.1)


async def delayed_pair(primary: int, secondary: int, seconds: int) -> None:
    """Make a replica set of a primary and of a secondary that stays behind, and wait until both are that."""
    members = [
        {"_id": 0, "host": f"127.0.0.1:{primary}"},
        {"_id": 1, "host": f"127.0.0.1:{secondary}", "priority": 0, "votes": 0}
        | {"secondaryDelaySecs": seconds},
    ]
    async with direct(primary) as client, direct(secondary) as other, asyncio.timeout(90):
        await client.admin.command({"replSetInitiate": {"_id": "pair", "members": members}})
        await until_primary(client)
        while not (await other.admin.command("hello"))["secondary"]:  # noqa: ASYNC110
            await asyncio.sleep(0.1)

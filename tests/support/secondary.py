"""A replica set of two with users: a primary, and a secondary for reads such as the copy's."""

from __future__ import annotations

import asyncio
import secrets
from collections.abc import AsyncIterator, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path
from typing import Any

from motor.motor_asyncio import AsyncIOMotorClient

from worker.embedded import Services, prerequisites
from worker.embedded.state import free_port

_SET = "pair"


class Pair:
    """The set: `uri` as its root, `limited_uri` as a user that may read and write and ask nothing else."""

    def __init__(self, ports: Sequence[int]) -> None:
        self.ports = ports
        self.uri = self._uri("root")
        self.limited_uri = self._uri("limited")

    def _uri(self, user: str) -> str:
        return f"mongodb://{user}:pass@127.0.0.1:{self.ports[0]}/?replicaSet={_SET}&authSource=admin"

    async def hold_secondary(self) -> None:
        """Let the secondary take no more of what the primary writes, and go on serving reads."""
        await self._secondary({"fsync": 1, "lock": True})

    async def release_secondary(self) -> None:
        await self._secondary({"fsyncUnlock": 1})

    async def _secondary(self, command: dict[str, Any]) -> None:
        place = f"mongodb://root:pass@127.0.0.1:{self.ports[1]}/?directConnection=true"
        client: AsyncIOMotorClient[dict[str, Any]] = AsyncIOMotorClient(place)
        try:
            await client.admin.command(command)
        finally:
            client.close()

    def beside(self, services: Services) -> Services:
        """Return services with this set in MongoDB's place."""
        return _Beside(services, self.uri)  # pyright: ignore[reportReturnType]


class _Beside:
    def __init__(self, services: Services, uri: str) -> None:
        self._services, self.mongo_uri = services, uri

    def __getattr__(self, name: str) -> Any:
        return getattr(self._services, name)

    def env(self) -> dict[str, str]:
        return self._services.env() | {"CROSSFADE_MONGO_URI": self.mongo_uri}


@asynccontextmanager
async def pair(directory: Path) -> AsyncIterator[Pair]:
    """Run the set. The secondary has the tag role:etl and no vote, so majority writes do not wait for it."""
    ports: list[int] = []
    for _ in range(2):
        ports.append(free_port(set(ports)))
    key = directory / "key"
    await asyncio.to_thread(_prepare, [directory / str(port) for port in ports], key)
    async with AsyncExitStack() as stack:
        for port in ports:
            await stack.enter_async_context(_mongod(directory / str(port), port, key))
        await _initiate(ports)
        yield Pair(ports)


def _prepare(directories: Sequence[Path], key: Path) -> None:
    for directory in directories:
        directory.mkdir(parents=True)
    key.write_text(secrets.token_hex(32))
    key.chmod(0o600)


@asynccontextmanager
async def _mongod(directory: Path, port: int, key: Path) -> AsyncIterator[None]:
    process = await asyncio.create_subprocess_exec(
        str(prerequisites.mongod_program()),
        *("--dbpath", str(directory), "--port", str(port), "--bind_ip", "127.0.0.1", "--replSet", _SET),
        *("--keyFile", str(key), "--nounixsocket", "--wiredTigerCacheSizeGB", "0.25", "--oplogSize", "64"),
        stdout=asyncio.subprocess.DEVNULL,
        stderr=asyncio.subprocess.DEVNULL,
    )
    try:
        yield
    finally:
        process.kill()
        await process.wait()


async def _initiate(ports: Sequence[int]) -> None:
    first: AsyncIOMotorClient[dict[str, Any]] = AsyncIOMotorClient(
        f"mongodb://127.0.0.1:{ports[0]}/?directConnection=true"
    )
    members = [
        {"_id": 0, "host": f"127.0.0.1:{ports[0]}"},
        {"_id": 1, "host": f"127.0.0.1:{ports[1]}", "priority": 0, "votes": 0, "tags": {"role": "etl"}},
    ]
    await first.admin.command({"replSetInitiate": {"_id": _SET, "members": members}})
    async with asyncio.timeout(90):
        while not (await first.admin.command("hello"))["isWritablePrimary"]:  # noqa: ASYNC110
            await asyncio.sleep(0.1)
    await first.admin.command({"createUser": "root", "pwd": "pass", "roles": ["root"]})
    first.close()
    root: AsyncIOMotorClient[dict[str, Any]] = AsyncIOMotorClient(
        f"mongodb://root:pass@127.0.0.1:{ports[0]}/?directConnection=true"
    )
    async with asyncio.timeout(90):
        while {member["state"] for member in await _members(root)} != {1, 2}:  # noqa: ASYNC110
            await asyncio.sleep(0.1)
    limited = {"createUser": "limited", "pwd": "pass", "roles": ["readWriteAnyDatabase"]}
    await root.admin.command({**limited, "writeConcern": {"w": 2}})
    root.close()


async def _members(client: AsyncIOMotorClient[dict[str, Any]]) -> list[dict[str, Any]]:
    return (await client.admin.command("replSetGetStatus"))["members"]

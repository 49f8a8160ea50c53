"""A replica set of two with users: a primary, and a secondary for reads such as the copy's."""

from __future__ import annotations

import asyncio
import secrets
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

from motor.motor_asyncio import AsyncIOMotorClient

from tests.support.mongods import direct, mongod, until_primary
from worker.embedded import Services

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
        async with direct(self.ports[1], "root:pass@") as client:
            await client.admin.command(command)

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
    key = await asyncio.to_thread(_key, directory)
    options = ("--replSet", _SET, "--keyFile", str(key), "--oplogSize", "64")
    async with mongod(directory / "first", *options) as one, mongod(directory / "second", *options) as other:
        ports = [one, other]
        await _initiate(ports)
        yield Pair(ports)


def _key(directory: Path) -> Path:
    directory.mkdir(parents=True, exist_ok=True)
    key = directory / "key"
    key.write_text(secrets.token_hex(32))
    key.chmod(0o600)
    return key


async def _initiate(ports: Sequence[int]) -> None:
    members = [
        {"_id": 0, "host": f"127.0.0.1:{ports[0]}"},
        {"_id": 1, "host": f"127.0.0.1:{ports[1]}", "priority": 0, "votes": 0, "tags": {"role": "etl"}},
    ]
    async with direct(ports[0]) as first:
        await first.admin.command({"replSetInitiate": {"_id": _SET, "members": members}})
        await until_primary(first)
        await first.admin.command({"createUser": "root", "pwd": "pass", "roles": ["root"]})
    async with direct(ports[0], "root:pass@") as root:
        async with asyncio.timeout(90):
            while {member["state"] for member in await _members(root)} != {1, 2}:  # noqa: ASYNC110
                await asyncio.sleep(0.1)
        limited = {"createUser": "limited", "pwd": "pass", "roles": ["readWriteAnyDatabase"]}
        await root.admin.command({**limited, "writeConcern": {"w": 2}})


async def _members(client: AsyncIOMotorClient[dict[str, Any]]) -> list[dict[str, Any]]:
    return (await client.admin.command("replSetGetStatus"))["members"]

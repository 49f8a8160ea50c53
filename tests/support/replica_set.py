"""A replica set of three real mongods, whose members are killed, frozen and started again one by one."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager, suppress
from pathlib import Path
from typing import Any

from motor.motor_asyncio import AsyncIOMotorClient
from pymongo.errors import PyMongoError

from tests.support.world import World, world
from worker.embedded import Services
from worker.embedded.mongod_server import REPLICA_SET, Mongod
from worker.embedded.readiness import listens
from worker.embedded.state import free_port
from worker.mongo import in_the_way

MEMBERS = 3
ELECTION_SECONDS = 2.0  # MongoDB's default is 10
_PATIENCE = 90.0
_PRIMARY, _SECONDARY = 1, 2  # states, as replSetGetStatus numbers them


class Member(Mongod):
    """One mongod of the set; whether it is the primary is the set's business."""

    async def is_ready(self) -> bool:
        return await listens(self.port)


class ReplicaSet:
    """Three members by number, 0 to 2. All are healthy when `healed` returns."""

    def __init__(self, directory: Path) -> None:
        ports: set[int] = set()
        for _ in range(MEMBERS):
            ports.add(free_port(taken=ports))
        self.members = [
            Member(directory / f"member{number}", {"mongod": port}, oplog_mb=256, cache_gb="0.25")
            for number, port in enumerate(sorted(ports))
        ]
        self.frozen: set[int] = set()

    @property
    def uri(self) -> str:
        """The connection string that names all members."""
        hosts = ",".join(f"127.0.0.1:{member.port}" for member in self.members)
        return f"mongodb://{hosts}/?replicaSet={REPLICA_SET}"

    async def initiate(self) -> None:
        """Start the members and let them elect a primary."""
        await asyncio.gather(*(self.start(number) for number in range(MEMBERS)))
        members = [
            {"_id": number, "host": f"127.0.0.1:{member.port}"} for number, member in enumerate(self.members)
        ]
        settings = {
            "electionTimeoutMillis": int(ELECTION_SECONDS * 1000),
            "heartbeatIntervalMillis": 500,
            "heartbeatTimeoutSecs": 2,
            "chainingAllowed": False,  # or one that is stopped may hold up another one that follows it
        }
        config = {"_id": REPLICA_SET, "members": members, "settings": settings}
        await self.admin(0, {"replSetInitiate": config})
        await self.healed()

    async def start(self, number: int) -> None:
        """Start a member with its data; return when it answers."""
        member = self.members[number]
        await member.prepare(lambda line: None)
        began = member.log_size()
        member.launch()
        async with asyncio.timeout(_PATIENCE):
            while not await member.is_ready():
                assert member.process(), member.last_words(began)
                await asyncio.sleep(0.05)
        member.prove()

    async def kill(self, number: int) -> None:
        """SIGKILL a member."""
        await self.members[number].kill()
        self.frozen.discard(number)

    def freeze(self, *numbers: int) -> None:
        """SIGSTOP members: their connections stay open, and nothing answers."""
        for number in numbers:
            process = self.members[number].process()
            assert process is not None
            process.suspend()
            self.frozen.add(number)

    def thaw(self, *numbers: int) -> None:
        """Let frozen members go on."""
        for number in numbers:
            if process := self.members[number].process():
                process.resume()
            self.frozen.discard(number)

    @asynccontextmanager
    async def client(self, number: int) -> AsyncIterator[AsyncIOMotorClient[dict[str, Any]]]:
        """Connect to one member alone, whatever it is."""
        client: AsyncIOMotorClient[dict[str, Any]] = AsyncIOMotorClient(
            "127.0.0.1",
            self.members[number].port,
            directConnection=True,
            uuidRepresentation="standard",
            tz_aware=True,
            serverSelectionTimeoutMS=5000,
            socketTimeoutMS=10_000,
        )
        try:
            yield client
        finally:
            client.close()

    async def admin(self, number: int, command: dict[str, Any]) -> dict[str, Any]:
        """Send one command to one member."""
        async with self.client(number) as client:
            return await client.admin.command(command)

    @asynccontextmanager
    async def electing_after(self, seconds: float) -> AsyncIterator[None]:
        """Let members miss their primary for so long before they elect another one by themselves."""
        await self._elect_after(seconds)
        try:
            yield
        finally:
            await self._elect_after(ELECTION_SECONDS)

    async def _elect_after(self, seconds: float) -> None:
        number = await self.primary()
        config = (await self.admin(number, {"replSetGetConfig": 1}))["config"]
        config["version"] += 1
        config["settings"]["electionTimeoutMillis"] = int(seconds * 1000)
        await self.admin(number, {"replSetReconfig": config})

    async def elect(self, *numbers: int) -> int:
        """Make the first of these members the primary that the others will have."""

        async def elected() -> int | None:
            for number in numbers:
                with suppress(PyMongoError):
                    await self.admin(number, {"replSetStepUp": 1})
                    return number
            return None

        return await _until(elected)

    async def primary(self, *, but: int | None = None) -> int:
        """Wait until a member, not ``but``, is the primary; return its number."""
        numbers = [number for number in range(MEMBERS) if number != but]

        async def found() -> int | None:
            for number in numbers:
                if number not in self.frozen and self.members[number].process():
                    with suppress(PyMongoError):
                        if (await self.admin(number, {"hello": 1})).get("isWritablePrimary"):
                            return number
            return None

        return await _until(found)

    async def healed(self) -> None:
        """Thaw and start what is not running; wait until one is primary and the others follow it."""
        self.thaw(*list(self.frozen))
        for number, member in enumerate(self.members):
            if member.process() is None:
                await self.start(number)

        async def whole() -> bool | None:
            with suppress(PyMongoError):
                status = await self.admin(0, {"replSetGetStatus": 1})
                states = sorted(member["state"] for member in status["members"])
                return states == [_PRIMARY, *[_SECONDARY] * (MEMBERS - 1)] or None
            return None

        await _until(whole)

    async def rollbacks(self, number: int) -> int:
        """Return how often a member has rolled back since it was started."""
        return (await self.admin(number, {"replSetGetRBID": 1}))["rbid"]

    async def rolled_back(self, number: int, before: int) -> None:
        """Wait until a member has rolled back once more."""

        async def more() -> bool | None:
            with suppress(PyMongoError):
                return await self.rollbacks(number) > before or None
            return None

        await _until(more)

    async def end(self) -> None:
        """SIGKILL all members, frozen ones too."""
        for number in range(MEMBERS):
            await self.kill(number)


async def _until(ask: Callable[[], Awaitable[Any]]) -> Any:
    async with asyncio.timeout(_PATIENCE):
        while (answer := await ask()) is None:  # noqa: ASYNC110 - other processes make it so
            await asyncio.sleep(0.1)
    return answer


@asynccontextmanager
async def replica_set(directory: Path) -> AsyncIterator[ReplicaSet]:
    """Run a replica set of three while the block runs, and no longer."""
    new = ReplicaSet(directory)
    try:
        await new.initiate()
        yield new
    finally:
        await new.end()


@asynccontextmanager
async def failover_world(services: Services, members: ReplicaSet, directory: Path) -> AsyncIterator[World]:
    """Make a world whose MongoDB is the set; whatever was done to its members is mended at the end."""
    async with world(services, directory, mongo_uri=members.uri) as w:
        try:
            yield w
        finally:
            await members.healed()  # or the world's databases could not be removed


@asynccontextmanager
async def index_being_built(w: World, members: ReplicaSet, **index: Any) -> AsyncIterator[None]:
    """Let MongoDB build an index of the leads during the block: it ends when all that vote have built it."""
    primary, leads = await members.primary(), w.mongo["leads"]
    members.freeze(next(number for number in range(MEMBERS) if number != primary))
    building = asyncio.ensure_future(leads.create_index("email", **index))
    try:
        await w.until_async("it builds", lambda: in_the_way.index_builds(w.client, leads.full_name.__eq__))
        yield
    finally:
        await members.healed()
        await building

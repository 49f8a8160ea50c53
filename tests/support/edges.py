"""Faults at the edges of a move: it is held there, something dies, and the tenant soon writes somewhere."""

from __future__ import annotations

import asyncio
import sys
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager, suppress
from typing import Any
from uuid import UUID, uuid4

import asyncpg
import orjson
from motor.motor_asyncio import AsyncIOMotorClient
from pymongo.errors import PyMongoError

from examples.spaces.meanwhile import writing
from examples.spaces.moved_writer import Away, MovedWriter, application, away_of, two_writers
from tests.support.moving import LEAD, phase, until_phase
from tests.support.signals import send
from tests.support.way_back import assert_both_ways_equal, brought_back
from tests.support.world import World, once
from worker.postgres.faults import FAULTS

WITHIN = 5.0
"""Seconds after a fault's end, or after the longest pause, in which a tenant must be writable again."""
_ANSWER = 1.0  # seconds that a database has to take a write, before it counts as away
_REFUSED_BY_MONGO, _REFUSED_BY_POSTGRES = 121, "XF001"
_MOVES = """
SELECT tenant_id, from_phase::text, to_phase::text, extract(epoch FROM at)::float8
FROM crossfade.transition ORDER BY transition_id
"""


class Silent(Exception):
    """A database did not answer a write, or refused it for another reason than the fence."""


async def in_mongo(w: World, tenant: UUID) -> bool:
    """Write a lead in MongoDB; False: the fence refuses it."""
    client: AsyncIOMotorClient[dict[str, Any]] = AsyncIOMotorClient(
        w.env["CROSSFADE_MONGO_URI"],
        uuidRepresentation="standard",
        serverSelectionTimeoutMS=round(_ANSWER * 1000),
    )
    lead = {"_id": uuid4(), "tenantId": tenant, "email": "a@b.example"}
    try:
        async with asyncio.timeout(_ANSWER):
            await client[w.name]["leads"].insert_one(lead)
    except (PyMongoError, TimeoutError) as error:
        if getattr(error, "code", None) == _REFUSED_BY_MONGO:
            return False
        raise Silent(type(error).__name__) from None
    finally:
        client.close()
    return True


async def in_postgres(w: World, tenant: UUID) -> bool:
    """Write a lead in PostgreSQL, as the application; False: the fence refuses it."""
    dsn, connection = w.services.dsn("application_role", w.name), None
    try:
        async with asyncio.timeout(_ANSWER):
            connection = await asyncpg.connect(dsn)
            await connection.execute("SELECT set_config('app.current_tenant_id', $1, false)", str(tenant))
            await connection.execute(LEAD, uuid4(), tenant)
    except FAULTS as error:
        if getattr(error, "sqlstate", None) == _REFUSED_BY_POSTGRES:
            return False
        raise Silent(type(error).__name__) from None
    finally:
        if connection is not None:
            connection.terminate()
    return True


WRITES: dict[str, Callable[[World, UUID], Awaitable[bool]]] = {"mongo": in_mongo, "postgres": in_postgres}


async def writable(
    w: World, tenant: UUID, wanted: str, told: str, *, since: float, within: float = WITHIN
) -> float:
    """Wait until a tenant is writable in a database; print and return after how many seconds that was.

    ``since``: when the fault was over, by the monotonic clock.
    """
    found, seconds = False, 0.0
    while not found and seconds < within + 40:  # told, though it is too late
        await asyncio.sleep(0.03)
        with suppress(Silent):
            found = await WRITES[wanted](w, tenant)
        seconds = time.monotonic() - since
    print(f"{told}: writable in {wanted} after {seconds:.2f} s")
    assert found and seconds < within, f"{told}: {wanted} after {seconds:.2f} s\n{w._logs()}"
    return seconds


async def nowhere_else(w: World, tenant: UUID, home: str) -> None:
    """Wait until a tenant's phase is settled at ``home``, and see that the other database refuses it."""
    await until_phase(w, tenant, home)
    other = "mongo" if home == "postgres" else "postgres"
    assert not await WRITES[other](w, tenant), f"both databases take the writes of {tenant}"


async def bring(w: World, tenant: UUID, wanted: str) -> None:
    """Move a tenant, if need be, to where a test wants it."""
    await until_phase(w, tenant, "mongo", "postgres")
    if await phase(w, tenant) == wanted:
        return
    command = "cutover" if wanted == "postgres" else "rollback"
    code, told = await once(w, command, str(tenant), "--window", "90")
    assert code == 0, told


def begins(failpoint: str) -> str:
    """Return where a tenant is when a move reaches this failpoint."""
    return "mongo" if failpoint.startswith("cutover.") else "postgres"


class Held:
    """A move that stands still at a failpoint. ``since``: when it got there, by the monotonic clock."""

    def __init__(self, process: asyncio.subprocess.Process, told: str) -> None:
        self._process, self._told, self.since = process, told, time.monotonic()

    async def ended(self, seconds: float = 60) -> tuple[int, dict[str, Any]]:
        """Wait until it has ended; return its exit code and what became of it."""
        async with asyncio.timeout(seconds):
            await self.over()
        code = self._process.returncode
        assert code is not None
        start = self._told.find("[\n")
        assert start >= 0, self._told
        (result,) = orjson.loads(self._told[start : self._told.rindex("]") + 1])
        return code, result

    async def over(self) -> None:
        """Wait until it has ended, however."""
        assert self._process.stdout is not None
        self._told += (await self._process.stdout.read()).decode()
        await self._process.wait()

    async def kill(self) -> None:
        """End it, if it has not ended."""
        send(self._process)
        await self._process.wait()


@asynccontextmanager
async def held(
    w: World, tenant: UUID, failpoint: str, seconds: float = 0.3, *arguments: str
) -> AsyncIterator[Held]:
    """Begin a move; yield when it stands at a failpoint, where it stays for some seconds.

    A move that is refused before, because a check does not hold yet, is begun again.
    """
    move: Held | None = None
    async with asyncio.timeout(90):
        while move is None:
            move = await _begun(w, tenant, failpoint, seconds, arguments)
    try:
        yield move
    finally:
        await move.kill()


async def _begun(
    w: World, tenant: UUID, failpoint: str, seconds: float, arguments: tuple[str, ...]
) -> Held | None:
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "worker", failpoint.partition(".")[0], str(tenant), "--json", *arguments),
        env=w.env | {"CROSSFADE_FAILPOINTS": f"{failpoint}=hold:1:{seconds}"},
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.STDOUT,
    )
    assert process.stdout is not None
    told = ""
    while line := (await process.stdout.readline()).decode():
        if line.strip() == f"{failpoint} holds":
            return Held(process, told)
        told += line
    await process.wait()
    print("refused before:", [one for one in told.splitlines() if "reason" in one] or told)
    return None


@asynccontextmanager
async def written(w: World, *tenants: UUID, rate: float = 30) -> AsyncIterator[MovedWriter]:
    """Let the application write through the client while the block runs, in these tenants.

    At its end no acknowledged write is lost, none was taken by a database that had not the tenant, and both
    databases are equal.
    """
    dsn = w.services.dsn("application_role", w.name)
    async with application(dsn, w.mongo, tenants, rate, 7) as writer:
        async with writing(writer):
            yield writer
        await brought_back(w)
        await w.settled()
        sides = {tenant: await phase(w, tenant) for tenant in tenants}
        assert await writer.compare(sides) == []
        told = writer.written
        print(f"{len(told.accepted)} writes, {told.unclear} unclear, {told.errors}")
        assert "NotThere" not in told.errors
        assert two_writers(told.accepted, await away(w)) == []
        assert {one.tenant for one in told.accepted} == {*tenants}
    await assert_both_ways_equal(w)


async def away(w: World) -> list[Away]:
    """Return when tenants were PostgreSQL's, by their transitions."""
    connection = await w.connect()
    try:
        rows = await connection.fetch(_MOVES)
    finally:
        await connection.close()
    return away_of((UUID(int=row[0].int), *row[1:]) for row in rows)


@asynccontextmanager
async def kept(w: World) -> AsyncIterator[None]:
    """Start the world's processes again whenever they end, as a supervisor does, while the block runs."""
    task = asyncio.create_task(_keep(w))
    try:
        yield
    finally:
        task.cancel()
        with suppress(asyncio.CancelledError):
            await task


async def _keep(w: World) -> None:
    while True:
        for name, process in list(w.processes.items()):
            if process.returncode is not None:
                await w.start(name, name)
        await asyncio.sleep(0.5)

"""crossfade-client's writes against both fences: what is done again, what is not, and what is told."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any
from uuid import uuid4

import asyncpg
import pytest
import pytest_asyncio
from pymongo import AsyncMongoClient, InsertOne
from pymongo.errors import BulkWriteError, DuplicateKeyError, WriteError

from crossfade_client import Fenced, Moved, PartlyDone, PauseTooLong, Router, Side, delete
from tests.support import moves
from worker.embedded import Services


@pytest_asyncio.fixture
async def move(services: Services, tmp_path: Path) -> AsyncIterator[moves.Moved]:
    async with moves.moved(services, tmp_path) as made:
        yield made


@pytest_asyncio.fixture
async def router(move: moves.Moved) -> AsyncIterator[Router]:
    async with Router(move.dsn, poll_every=3600) as made:
        yield made


async def refused_once(move: moves.Moved, writing: asyncio.Task[Any]) -> None:
    """Wait until a unit has been done, and refused: it waits now."""
    await move.world.until("a unit was refused", lambda: bool(move.units) or writing.done())
    assert not writing.done()


async def test_a_unit_is_done_where_the_tenant_is(move: moves.Moved, router: Router) -> None:
    assert await router.write(move.tenant, move.unit) == "mongo"
    await move.fence_mongo(move.tenant)
    await move.to("postgres", 3)
    assert await router.write(str(move.tenant), move.unit) == "postgres"
    assert await move.counts() == (1, 1)
    assert [(side.phase, side.epoch) for side in (move.units[0], move.units[-1])] == [
        ("mongo", 2),
        ("postgres", 3),
    ]


async def test_a_tenant_without_a_row_is_written_in_mongodb(move: moves.Moved, router: Router) -> None:
    seen: list[Side] = []

    async def unit(side: Side) -> None:
        seen.append(side)

    await router.write(uuid4(), unit)
    assert [(side.name, side.epoch) for side in seen] == [("mongo", 0)]


async def test_a_unit_refused_by_mongodb_waits_for_the_switch_and_is_done_again(
    move: moves.Moved, router: Router
) -> None:
    await move.to("draining", 3)
    await move.fence_mongo(move.tenant)
    writing = asyncio.create_task(router.write(move.tenant, move.unit))
    await refused_once(move, writing)
    await move.to("postgres", 3)
    assert await writing == "postgres"
    assert await move.counts() == (0, 1)
    assert [(side.name, side.attempt) for side in move.units] == [("mongo", 1), ("postgres", 2)]


async def test_a_unit_that_an_abort_freed_is_done_in_mongodb(move: moves.Moved, router: Router) -> None:
    await move.to("draining", 3)
    await move.fence_mongo(move.tenant)
    writing = asyncio.create_task(router.write(move.tenant, move.unit))
    await refused_once(move, writing)
    await move.to("aborting", 3)
    await move.fence_mongo()
    await move.to("mongo", 3)
    assert await writing == "mongo"
    assert await move.counts() == (1, 0)


async def test_a_unit_refused_by_postgresql_waits_for_the_way_back(move: moves.Moved, router: Router) -> None:
    await move.to("postgres", 3)
    await router.read(move.tenant)
    held = asyncio.Event()

    async def unit(side: Side) -> str:
        if side.name == "postgres":  # the phase changes between what it was told and its write
            await move.to("rolling_back", 4)
            held.set()
        return await move.unit(side)

    writing = asyncio.create_task(router.write(move.tenant, unit))
    await held.wait()
    await refused_once(move, writing)
    await move.to("opening", 4)
    await move.to("mongo", 5)
    assert await writing == "mongo"
    assert await move.counts() == (1, 0)


async def test_nobody_is_called_while_nobody_may_write(move: moves.Moved, router: Router) -> None:
    await move.to("rolling_back", 4)
    writing = asyncio.create_task(router.write(move.tenant, move.unit, max_pause=0.5))
    with pytest.raises(PauseTooLong) as told:
        await writing
    assert (told.value.phase, told.value.epoch, move.units) == ("rolling_back", 4, [])


async def test_a_pause_that_lasts_too_long_is_told_with_its_phase(move: moves.Moved, router: Router) -> None:
    await move.to("draining", 3)
    await move.fence_mongo(move.tenant)
    with pytest.raises(PauseTooLong, match="draining") as told:
        await router.write(move.tenant, move.unit, max_pause=0.5)
    assert (told.value.tenant, told.value.epoch) == (move.tenant, 3)
    assert isinstance(told.value.__cause__, WriteError)
    assert await move.counts() == (0, 0)


async def test_the_applications_own_validator_is_not_taken_for_the_fence(
    move: moves.Moved, router: Router
) -> None:
    await move.world.mongo.command("collMod", "users", validator={"email": {"$exists": True}})
    with pytest.raises(WriteError):
        await router.write(move.tenant, move.unit)
    assert len(move.units) == 1


async def test_a_transaction_that_names_no_tenant_is_not_done_again(
    move: moves.Moved, router: Router
) -> None:
    await move.to("postgres", 3)
    calls: list[Side] = []

    async def unit(side: Side) -> None:
        calls.append(side)
        connection = await asyncpg.connect(move.dsn)
        try:
            await move.insert(connection)
        finally:
            await connection.close()

    with pytest.raises(asyncpg.PostgresError, match="names no tenant"):
        await router.write(move.tenant, unit)
    assert len(calls) == 1


async def test_an_older_snapshot_is_done_again(move: moves.Moved, router: Router) -> None:
    """A transaction of REPEATABLE READ began before the tenant came to PostgreSQL: 40001 from the fence."""
    await move.to("postgres", 3)
    attempts: list[int] = []

    async def unit(side: Side) -> None:
        attempts.append(side.attempt)
        connection = await asyncpg.connect(move.dsn)
        try:
            async with move.transaction(connection, "repeatable_read"):
                await connection.fetchval("SELECT count(*) FROM public.users")
                if side.attempt == 1:
                    await move.to("postgres", 3)  # changes the row, as a change of phase does
                await move.insert(connection)
        finally:
            await connection.close()

    await router.write(move.tenant, unit)
    assert attempts == [1, 2]
    assert await move.counts() == (0, 1)


async def test_the_applications_own_conflict_is_not_done_again(move: moves.Moved, router: Router) -> None:
    await move.to("postgres", 3)
    calls: list[Side] = []

    async def unit(side: Side) -> None:
        calls.append(side)
        raise asyncpg.SerializationError("could not serialize access")

    with pytest.raises(asyncpg.SerializationError):
        await router.write(move.tenant, unit)
    assert len(calls) == 1


@pytest.mark.parametrize("error", [DuplicateKeyError("E11000", 11000), OSError("reset"), TimeoutError()])
async def test_an_unclear_error_is_not_done_again(
    move: moves.Moved, router: Router, error: Exception
) -> None:
    await move.to("draining", 3)
    calls: list[Side] = []

    async def unit(side: Side) -> None:
        calls.append(side)
        raise error

    with pytest.raises(type(error)):
        await router.write(move.tenant, unit)
    assert len(calls) == 1


@pytest.mark.parametrize("atomic", [False, True])
async def test_a_bulk_that_was_refused_in_part(move: moves.Moved, router: Router, atomic: bool) -> None:
    """Outside of a transaction, what was done before the refusal stays: doing it again would double it."""
    await move.to("draining", 3)
    await router.read(move.tenant)
    other = uuid4()

    async def unit(side: Side) -> str:
        if side.name == "postgres":
            return await move.unit(side)
        move.units.append(side)
        await move.fence_mongo(move.tenant)
        bulk = [InsertOne({"_id": uuid4(), "tenantId": tenant}) for tenant in (other, move.tenant)]
        if not atomic:
            await move.users.bulk_write(bulk)
        else:
            async with await move.world.client.start_session() as session, session.start_transaction():
                await move.users.bulk_write(bulk, session=session)
        return side.name

    writing = asyncio.create_task(router.write(move.tenant, unit, atomic=atomic))
    if atomic:
        await refused_once(move, writing)
        await move.to("postgres", 3)
        assert await writing == "postgres"
    else:
        with pytest.raises(PartlyDone) as told:
            await writing
        assert isinstance(told.value.__cause__, BulkWriteError)
    assert await move.users.count_documents({"tenantId": other}) == (0 if atomic else 1)


async def test_a_block_that_was_refused_says_moved_once_it_can_be_done_again(
    move: moves.Moved, router: Router
) -> None:
    await move.to("draining", 3)
    await move.fence_mongo(move.tenant)

    async def place() -> str:
        while True:
            try:
                async with router.writing(move.tenant) as side:
                    return await move.unit(side)
            except Moved as told:
                assert told.side == "mongo"

    writing = asyncio.create_task(place())
    await refused_once(move, writing)
    await move.to("postgres", 3)
    assert await writing == "postgres"
    assert [side.name for side in move.units] == ["mongo", "postgres"]


@pytest.mark.parametrize("driver", ["motor", "pymongo"])
@pytest.mark.parametrize("many", [False, True])
async def test_a_delete_is_refused_by_the_fence(
    move: moves.Moved, services: Services, driver: str, many: bool
) -> None:
    users = move.users
    client: AsyncMongoClient[Any] | None = None
    if driver == "pymongo":
        client = AsyncMongoClient(services.mongo_uri, uuidRepresentation="standard")
        users = client[move.world.name].users
    try:
        await users.insert_many([{"_id": uuid4(), "tenantId": move.tenant} for _ in range(2)])
        await move.fence_mongo(move.tenant)
        with pytest.raises(Fenced):
            await delete(users, {"tenantId": move.tenant}, many=many)
        assert await users.count_documents({}) == 2
        assert await users.count_documents({"crossfadeDeleting": True}) == 0
        await move.fence_mongo()
        assert await delete(users, {"tenantId": move.tenant}, many=many) == (2 if many else 1)
        assert await delete(users, {"tenantId": uuid4()}, many=many) == 0
        assert await users.count_documents({}) == (0 if many else 1)
    finally:
        if client is not None:
            await client.close()


async def test_a_delete_in_the_applications_transaction_is_undone_with_it(move: moves.Moved) -> None:
    await move.users.insert_one({"_id": uuid4(), "tenantId": move.tenant})
    async with await move.world.client.start_session() as session:
        session.start_transaction()
        assert await delete(move.users, {"tenantId": move.tenant}, session=session) == 1
        await session.abort_transaction()
    assert await move.users.count_documents({}) == 1


async def test_a_fenced_delete_is_a_unit_that_waits(move: moves.Moved, router: Router) -> None:
    await move.users.insert_one({"_id": uuid4(), "tenantId": move.tenant})
    await move.to("draining", 3)
    await move.fence_mongo(move.tenant)

    async def unit(side: Side) -> str:
        move.units.append(side)
        if side.name == "mongo":
            await delete(move.users, {"tenantId": move.tenant})
        return side.name

    writing = asyncio.create_task(router.write(move.tenant, unit))
    await refused_once(move, writing)
    await move.to("postgres", 3)
    assert await writing == "postgres"

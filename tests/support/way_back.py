"""Tenants that write in PostgreSQL, and the wait until MongoDB has it all."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any
from uuid import UUID, uuid4

import asyncpg
import pytest

from tests.support.letters import log
from tests.support.world import PATIENCE, World
from worker.mongo import reverse
from worker.mongo.client import connect
from worker.postgres import outbox
from worker.postgres.capture import capture_faults, install_capture

_WAITING = "SELECT EXISTS (SELECT FROM crossfade.outbox)"


async def install(w: World) -> None:
    """Capture the application's writes."""
    connection = await w.connect()
    try:
        rows = await connection.fetch("SELECT namespace, collection_id FROM crossfade.collection")
        await install_capture(connection, w.mapping, {row[0]: row[1] for row in rows})
        assert await capture_faults(connection, w.mapping) == []
    finally:
        await connection.close()


async def set_phase(w: World, phase: str, *tenants: UUID) -> None:
    """Set the phase of these tenants, or of all, by hand."""
    await w.execute(
        "UPDATE crossfade.tenant SET phase = $1::text::crossfade.phase, epoch = epoch + 1 "
        "WHERE cardinality($2::uuid[]) = 0 OR tenant_id = ANY($2)",
        phase,
        list(tenants),
    )


async def switched(w: World, *tenants: UUID) -> None:
    """Let tenants, or all, write in PostgreSQL, and have it brought back."""
    await install(w)
    await set_phase(w, "postgres", *tenants)


@asynccontextmanager
async def application(w: World, tenant: UUID) -> AsyncIterator[asyncpg.Connection]:
    """A transaction of the application, for one tenant."""
    connection = await asyncpg.connect(w.services.dsn("application_role", w.name))
    try:
        async with connection.transaction():
            await connection.execute("SELECT set_config('app.current_tenant_id', $1, true)", str(tenant))
            yield connection
    finally:
        await connection.close()


async def stands_still(w: World, name: str, place: str, seconds: int) -> None:
    """Start a `crossfade reverse` under a name, and wait until it stands still at a place, for so long."""
    await w.start("reverse", name, CROSSFADE_FAILPOINTS=f"{place}=hold:1:{seconds}")
    await w.until("it holds", lambda: f"{place} holds" in log(w, name))


async def brought_back(w: World, seconds: float = PATIENCE, *, drained: bool = True) -> None:
    """Wait until MongoDB has all that was committed in PostgreSQL before: as a rollback does (R3).

    ``drained`` false: while the application writes on, only that the way back goes.
    """
    connection, client = await w.connect(), await connect(w.env["CROSSFADE_MONGO_URI"], "test")
    barrier = uuid4()
    try:
        async with asyncio.timeout(seconds):
            while drained and await connection.fetchval(_WAITING):  # noqa: ASYNC110
                await asyncio.sleep(0.05)
            await outbox.ask_barrier(connection, barrier)
            while not await reverse.arrived(client, barrier):  # noqa: ASYNC110
                await asyncio.sleep(0.05)
    except TimeoutError:
        left = await connection.fetch("SELECT * FROM crossfade.outbox")
        sent = await connection.fetch("SELECT * FROM crossfade.reverse_barrier")
        pytest.fail(f"not brought back in {seconds} s: {left[:5]} {sent}\n{w._logs()}")
    finally:
        client.close()
        await connection.close()


async def assert_both_ways_equal(w: World, *, faults: int = 0) -> None:
    """Documents and rows are equal, the records add up, and no way back is broken."""
    assert await w.unequal() == []  # each document that is there, with its rows
    for name, one in w.mapping.collections.items():  # and there are no others
        rows = await w.value(f"SELECT count(*) FROM {one.table}")
        assert await w.mongo[name].count_documents({}) == rows > 0, name
    outcomes = "applied + superseded + absent + echo + switched + parked + dead_lettered + control"
    for table in ("batch", "partition_progress"):
        assert await w.value(f"SELECT bool_and(records = {outcomes}) FROM crossfade.{table}")
    assert await w.value("SELECT count(*) FROM crossfade.way_back_fault") == faults


async def outcomes(w: World) -> dict[str, Any]:
    """Return how many records had each outcome."""
    names = ("applied", "superseded", "echo", "switched", "parked", "dead_lettered")
    sums = ", ".join(f"sum({name})::bigint" for name in names)
    connection = await w.connect()
    try:
        row = await connection.fetchrow(f"SELECT {sums} FROM crossfade.partition_progress")
        assert row is not None
        return dict(zip(names, row, strict=True))
    finally:
        await connection.close()

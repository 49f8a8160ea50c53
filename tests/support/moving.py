"""A world in which tenants can move: all roles run, a generation is clean, the fences are installed."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any
from uuid import UUID

import asyncpg
import orjson

from tests.support.world import PATIENCE, World, once, world
from worker.embedded import Services
from worker.embedded.state import ServiceName, free_port

LEAD = "INSERT INTO leads (id, tenant_id, email) VALUES ($1, $2, 'a@b.example')"
CLEAN = """
SELECT count(*) FROM crossfade.generation
WHERE kind = 'full' AND finished_at IS NOT NULL AND unclean = '{}'
"""


@asynccontextmanager
async def moving(
    services: Services,
    directory: Path,
    *,
    documents: int = 600,
    tenants: int = 3,
    mongo_uri: str | None = None,
    **env: str,
) -> AsyncIterator[World]:
    """Yield a world whose tenants may move at once. ``env``: of all its processes.

    ``mongo_uri``: another MongoDB than that of the services.
    """
    async with world(services, directory, mongo_uri=mongo_uri) as w:
        w.env |= env
        await w.load(documents, tenants=tenants)
        await started(w)
        yield w


@asynccontextmanager
async def looked_after(
    services: Services, directory: Path, *, documents: int, mongo_uri: str | None = None
) -> AsyncIterator[World]:
    """Yield a world whose tenants may move again and again, while `crossfade control` runs."""
    env = {"CROSSFADE_RECONCILE_FULL_EVERY": "3", "CROSSFADE_CONTROL_PORT": str(free_port(set()))}
    async with moving(services, directory, documents=documents, mongo_uri=mongo_uri, **env) as w:
        await w.start("control", "control")
        yield w


@asynccontextmanager
async def alone(directory: Path) -> AsyncIterator[World]:
    """Yield a world as `looked_after` does, on services of its own, which a test may kill."""
    try:
        own = await Services.up(directory / "services")
        async with looked_after(own, directory / "world", documents=150) as w:
            yield w
    finally:
        await Services.down(directory / "services")


async def begun_again(w: World, service: ServiceName) -> None:
    """Start a service that was killed."""
    await w.services.start(service)
    if service == "postgres":
        await w.execute("ANALYZE")  # a crash loses what the server knew of that


async def started(w: World) -> None:
    """Start all roles but `control`, and prepare what the world has: its tenants may move."""
    for role in ("publish", "apply", "reverse"):
        await w.start(role, role)
    await w.settled()
    await w.start("reconcile", "reconcile")
    await prepared(w)


async def prepared(w: World) -> None:
    """Wait until a generation is clean, and install the fences: tenants may move."""
    await w.until_value(CLEAN, 1)
    await w.execute("ANALYZE")
    code, told = await once(w, "cutover", "prepare")
    assert code == 0, told


_MOVED = "moved@b.example"


async def moves_over(w: World, tenant: UUID, other: UUID) -> None:
    """Let a lead move to another tenant, which MongoDB takes, and PostgreSQL does not before `fits_there`."""
    check = f"CHECK (tenant_id <> '{other}' OR email <> '{_MOVED}')"
    await w.execute(f"ALTER TABLE leads ADD CONSTRAINT not_there {check}")
    change = {"$set": {"tenantId": other, "email": _MOVED}}
    assert (await w.mongo["leads"].update_one({"tenantId": tenant}, change)).modified_count == 1


async def fits_there(w: World) -> None:
    """Let the lead that moved fit, and be written once more."""
    await w.execute("ALTER TABLE leads DROP CONSTRAINT not_there")
    await w.mongo["leads"].update_one({"email": _MOVED}, {"$set": {"name": "there"}})


async def tenants_of(w: World) -> list[UUID]:
    """Return the world's tenants, in one order."""
    return sorted(await w.mongo["tenants"].distinct("_id"))


async def cutover(w: World, *arguments: str, **env: str) -> tuple[int, list[dict[str, Any]]]:
    """Run `crossfade cutover ... --json`; return its exit code and what became of each move."""
    code, told = await once(w, "cutover", *arguments, "--json", **env)
    start = told.find("[\n")
    assert start >= 0, told
    return code, orjson.loads(told[start : told.rindex("]") + 1])


async def phase(w: World, tenant: UUID) -> str:
    """Return a tenant's phase."""
    return await w.value("SELECT phase::text FROM crossfade.tenant WHERE tenant_id = $1", tenant)


async def epoch_of(w: World, tenant: UUID) -> int:
    """Return a tenant's epoch."""
    return await w.value("SELECT epoch FROM crossfade.tenant WHERE tenant_id = $1", tenant)


async def until_phase(w: World, tenant: UUID, *wanted: str, seconds: float = PATIENCE) -> None:
    """Wait until a tenant is in one of these phases."""
    async with asyncio.timeout(seconds):
        while await phase(w, tenant) not in wanted:  # noqa: ASYNC110 - other processes change it
            await asyncio.sleep(0.02)


@asynccontextmanager
async def application(w: World, tenant: UUID | None) -> AsyncIterator[asyncpg.Connection]:
    """Yield a connection as the application has it, for one tenant."""
    connection = await asyncpg.connect(w.services.dsn("application_role", w.name))
    try:
        if tenant is not None:
            await connection.execute("SELECT set_config('app.current_tenant_id', $1, false)", str(tenant))
        yield connection
    finally:
        await connection.close()

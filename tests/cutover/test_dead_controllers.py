"""A controller dies at each step: the tenant is soon writable again, and nothing is lost."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable
from pathlib import Path
from uuid import UUID, uuid4

import asyncpg
import pytest
from pymongo.errors import WriteError

from tests.support.moving import LEAD, application, cutover, moving, phase, tenants_of, until_phase
from tests.support.world import World, once
from worker.embedded import Services
from worker.embedded.state import free_port
from worker.failpoints import EXIT_CODE

FORWARD = {
    "cutover.draining": "mongo",
    "cutover.fence_decided": "mongo",
    "cutover.fenced": "mongo",
    "cutover.verified": "mongo",
    "cutover.decided": "postgres",
}
BACK = {"rollback.closed": "postgres", "rollback.verified": "postgres", "rollback.decided": "mongo"}
WITHIN = 5.0  # seconds


async def _in_mongo(w: World, tenant: UUID) -> bool:
    try:
        await w.mongo["leads"].insert_one({"_id": uuid4(), "tenantId": tenant, "email": "a@b.example"})
    except WriteError as error:
        assert error.code == 121
        return False
    return True


async def _in_postgres(w: World, tenant: UUID) -> bool:
    try:
        async with application(w, tenant) as app:
            await app.execute(LEAD, uuid4(), tenant)
    except asyncpg.PostgresError as error:
        assert error.sqlstate == "XF001", error
        return False
    return True


WRITES: dict[str, Callable[[World, UUID], Awaitable[bool]]] = {"mongo": _in_mongo, "postgres": _in_postgres}


async def _ends(w: World, tenant: UUID, wanted: str, told: str) -> None:
    began = time.monotonic()
    while not await WRITES[wanted](w, tenant):
        assert time.monotonic() - began < WITHIN, f"{told}: not writable in {wanted}\n{w._logs()}"
        await asyncio.sleep(0.05)
    print(told, "writable after", round(time.monotonic() - began, 2))
    await until_phase(w, tenant, wanted)
    other = "mongo" if wanted == "postgres" else "postgres"
    assert not await WRITES[other](w, tenant), f"{told}: both databases take its writes"


async def _dies(w: World, failpoint: str, tenant: UUID, *arguments: str) -> None:
    """Let a controller die at a step, which it may reach by its second try only."""
    command, env = failpoint.partition(".")[0], {"CROSSFADE_FAILPOINTS": f"{failpoint}=exit:1"}
    code, told = await once(w, command, str(tenant), *arguments, "--window", "60", **env)
    assert code == EXIT_CODE, told


@pytest.mark.alone
async def test_a_controller_that_dies_leaves_no_tenant_behind(services: Services, tmp_path: Path) -> None:
    async with moving(services, tmp_path, tenants=8) as w:
        left = iter(await tenants_of(w))
        await w.start("control", "control", CROSSFADE_CONTROL_PORT=str(free_port(set())))
        for failpoint, ends in FORWARD.items():
            tenant = next(left)
            await _dies(w, failpoint, tenant)
            await _ends(w, tenant, ends, failpoint)
        # While it aborts, which it does as a rehearsal.
        await _dies(w, "cutover.aborting", tenant := next(left), "--rehearse")
        await _ends(w, tenant, "mongo", "cutover.aborting")
        tenant = next(left)
        for failpoint, ends in BACK.items():
            if await phase(w, tenant) == "mongo":
                code, results = await cutover(w, str(tenant), "--window", "60")
                assert code == 0, results
            await _dies(w, failpoint, tenant)
            await _ends(w, tenant, ends, failpoint)
        # Two at once: one moves it, the other says so.
        tenant = next(left)
        both = await asyncio.gather(*(cutover(w, str(tenant), "--deadline", "10") for _ in range(2)))
        assert sorted(code for code, _ in both) == [0, 1], both
        await _ends(w, tenant, "postgres", "two at once")
        for tenant in await tenants_of(w):
            if await phase(w, tenant) == "postgres":
                code, told = await once(w, "rollback", str(tenant), "--window", "60")
                assert code == 0, told
        await w.settled()
        assert await w.unequal() == []


@pytest.mark.alone
async def test_postgresql_is_away_while_a_tenant_drains(services: Services, tmp_path: Path) -> None:
    async with moving(services, tmp_path, tenants=2) as w:
        tenant = (await tenants_of(w))[0]
        moved = asyncio.create_task(
            once(w, "cutover", str(tenant), CROSSFADE_FAILPOINTS="cutover.fenced=hold:1:0.5")
        )
        fences = w.client["crossfade"]["fence"]
        mine = {"_id.migration": w.name, "_id.tenant": tenant, "state": "draining"}
        await w.until_async("the tenant drains", lambda: fences.find_one(mine))
        began = time.monotonic()
        await services.kill("postgres")
        try:
            while not await _in_mongo(w, tenant):  # noqa: ASYNC110 - another process
                await asyncio.sleep(0.02)
            seconds = time.monotonic() - began
            print("writable after", seconds)
            code, told = await moved
            assert code == 1, told
        finally:
            await services.start("postgres")
        await w.start("control", "control", CROSSFADE_CONTROL_PORT=str(free_port(set())))
        await _ends(w, tenant, "mongo", "PostgreSQL away")
        assert seconds < 2, told

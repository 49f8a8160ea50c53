"""A rollback waits for what a publisher of the way back has taken and not sent (docs/protocol.md, R3)."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from uuid import UUID, uuid4

from tests.support.letters import log
from tests.support.moving import LEAD, application, cutover, epoch_of, moving, phase, tenants_of, until_phase
from tests.support.way_back import assert_both_ways_equal, brought_back, stands_still
from tests.support.world import World, once, settings
from worker.cutover.ground import opened
from worker.cutover.move import Options
from worker.cutover.rollback import Rollback
from worker.embedded import Services

_HOLD = "SELECT FROM crossfade.tenant WHERE tenant_id = $1 FOR SHARE"
_DEADLINE, _LONGER = 2.0, 5.0  # seconds
_FREE = "SELECT count(*) FROM (SELECT FROM crossfade.outbox FOR UPDATE SKIP LOCKED) AS f"
_LOOKED_AT = """
SELECT (evidence->>'looked_at')::int FROM crossfade.transition
WHERE evidence->'compared'->(SELECT current_database() || '.leads')->'mongo'
        = evidence->'compared'->(SELECT current_database() || '.leads')->'postgres'
    AND tenant_id = $1 AND to_phase = 'opening' ORDER BY epoch DESC LIMIT 1
"""
_ASKS = (
    "SELECT count(*) FROM pg_stat_activity WHERE application_name = 'crossfade control' AND query ~ 'outbox'"
)
_PAGE = "UPDATE pages SET title = 'late' WHERE id = (SELECT id FROM pages LIMIT 1)"
_WAITS = "SELECT count(*) FROM pg_locks WHERE relation = 'pages'::regclass AND NOT granted"


@asynccontextmanager
async def _held(w: World, tenant: UUID, name: str) -> AsyncIterator[UUID]:
    """Yield a lead of the tenant that a publisher has taken while it stands still; another one goes."""
    await w.kill("reverse")
    lead = uuid4()
    await _write(w, tenant, lead)
    try:
        await stands_still(w, name, "reverse.after_take", 120)
        assert await w.value(_FREE) == 0 < await w.value("SELECT count(*) FROM crossfade.outbox")
        await w.start("reverse", "reverse")
        await brought_back(w, drained=False)  # the other one goes
        yield lead
    finally:
        await w.kill(name)


async def _write(w: World, tenant: UUID, lead: UUID) -> None:
    async with application(w, tenant) as sql:
        await sql.execute(LEAD, lead, tenant)


async def test_what_a_publisher_holds_is_not_left_behind(services: Services, tmp_path: Path) -> None:
    """It stands still, and another one sends all there is to take, and the barrier."""
    async with moving(services, tmp_path, documents=200) as w:
        tenant = (await tenants_of(w))[0]
        code, results = await cutover(w, str(tenant), "--window", "60")
        assert code == 0, results
        await brought_back(w)
        await _held_before(w, tenant)
        await brought_back(w)
        await _held_in_the_pause(w, tenant)
        await brought_back(w)
        await _held_at_the_decision(w, tenant)
        await _read_with_a_lower_version(w, tenant)
        assert await phase(w, tenant) == "mongo"
        await w.settled()
        await assert_both_ways_equal(w)


async def _held_before(w: World, tenant: UUID) -> None:
    """Then no pause begins."""
    epoch = await epoch_of(w, tenant)
    async with _held(w, tenant, "slow before") as lead:
        code, told = await once(w, "rollback", str(tenant))
        assert code == 1 and "does not come to MongoDB within 10 s" in told, told
        assert await epoch_of(w, tenant) == epoch
        assert await w.mongo["leads"].find_one({"_id": lead}) is None


async def _held_in_the_pause(w: World, tenant: UUID) -> None:
    """What is taken after the last look before it."""
    looked, go = w.directory / "looked", w.directory / "go"
    hook = f"touch {looked}; until [ -e {go} ]; do sleep 0.05; done"
    move = asyncio.create_task(once(w, "rollback", str(tenant), "--before", hook, "--hook-within", "170"))
    await w.until("it has looked", looked.exists)
    async with _held(w, tenant, "slow in the pause") as lead:
        go.touch()
        code, told = await move
        assert code == 1 and "not drained within 1 s (close" in told and "barrier" not in told, told
        assert await phase(w, tenant) == "postgres"
        assert await w.mongo["leads"].find_one({"_id": lead}) is None


async def _held_at_the_decision(w: World, tenant: UUID) -> None:
    """Somebody holds the tenant's row: past the deadline nothing is decided, and it can write again."""
    hold = "rollback.closed=hold:1:0.5"  # time to take the row in
    arguments = "rollback", str(tenant), "--deadline", str(_DEADLINE)
    move = asyncio.create_task(once(w, *arguments, CROSSFADE_FAILPOINTS=hold))
    connection = await w.connect()
    try:
        await until_phase(w, tenant, "rolling_back")
        async with connection.transaction():
            await connection.execute(_HOLD, tenant)
            await asyncio.sleep(_LONGER)
    finally:
        await connection.close()
    code, told = await move
    assert code == 1 and "its phase could not be changed" in told, told
    assert await phase(w, tenant) == "postgres"
    await _write(w, tenant, uuid4())
    await brought_back(w)


async def _read_with_a_lower_version(w: World, tenant: UUID) -> None:
    """What comes behind something that was written later is looked at nevertheless."""
    await w.start("reverse", "another")
    await w.until("it has begun", lambda: "bringing writes back" in log(w, "another"))
    await brought_back(w)
    lock, later = await w.connect(), uuid4()
    try:
        async with opened(settings(w), "rollback") as ground:
            await lock.execute("BEGIN")
            async with application(w, tenant) as sql:
                async with sql.transaction():
                    assert await sql.execute(_PAGE) == "UPDATE 1"
                    locking = asyncio.create_task(lock.execute("LOCK TABLE pages IN ACCESS EXCLUSIVE MODE"))
                    await w.until_value(_WAITS, 1)
                await locking  # whoever takes the page has drawn its version, and cannot read it
                await w.until_value(_WAITS, 1)
                await sql.execute(LEAD, later, tenant)
            there = {"_id": later}
            await w.until_async("the later one is there", lambda: w.mongo["leads"].find_one(there))
            move = asyncio.create_task(Rollback(ground, [tenant], Options(deadline=8.0), print).run())
            await w.until_value(_ASKS, 1)
            await lock.execute("COMMIT")
            result = await move
    finally:
        await lock.close()
    assert result.phase == "mongo", result.why
    assert await w.mongo["pages"].count_documents({"tenantId": tenant, "title": "late"}) == 1
    # Other tests' worlds have such tenants too.
    ours = {"tenant": tenant, "_id.ns": {"$regex": f"^{w.name}\\."}}
    written = await w.client["crossfade"]["reverse"].count_documents(ours)
    assert await w.value(_LOOKED_AT, tenant) == written

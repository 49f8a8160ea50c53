"""A rollback waits for what a publisher of the way back has taken and not sent (PROTOCOL.md, R3)."""

from __future__ import annotations

import asyncio
from pathlib import Path
from uuid import UUID, uuid4

from tests.support.moving import LEAD, application, cutover, moving, phase, tenants_of, until_phase
from tests.support.way_back import assert_both_ways_equal, brought_back
from tests.support.world import World, once
from worker.embedded import Services

_HOLD = "SELECT FROM crossfade.tenant WHERE tenant_id = $1 FOR SHARE"
_DEADLINE, _LONGER = 2.0, 5.0  # seconds
_FREE = "SELECT count(*) FROM (SELECT FROM crossfade.outbox FOR UPDATE SKIP LOCKED) AS f"


async def test_what_a_publisher_holds_is_not_left_behind(services: Services, tmp_path: Path) -> None:
    """It stands still, and another one sends all there is to take, and the barrier."""
    async with moving(services, tmp_path, documents=200) as w:
        tenant = (await tenants_of(w))[0]
        code, results = await cutover(w, str(tenant), "--window", "60")
        assert code == 0, results
        await brought_back(w)
        await w.kill("reverse")
        lead = uuid4()
        async with application(w, tenant) as sql:
            await sql.execute(LEAD, lead, tenant)
        await w.start("reverse", "slow", CROSSFADE_FAILPOINTS="reverse.after_take=hold:1:120")
        await w.until("it holds", lambda: "after_take holds" in (w.directory / "slow.log").read_text())
        assert await w.value(_FREE) == 0 < await w.value("SELECT count(*) FROM crossfade.outbox")
        await w.start("reverse", "reverse")
        await brought_back(w, drained=False)  # the other one goes
        code, told = await once(w, "rollback", str(tenant))
        assert code == 1 and "not drained within 1 s (close" in told and "barrier" not in told, told
        assert await phase(w, tenant) == "postgres"
        assert await w.mongo["leads"].find_one({"_id": lead}) is None
        await w.kill("slow")
        await brought_back(w)
        await _held_at_the_decision(w, tenant)
        code, told = await once(w, "rollback", str(tenant), "--window", "60")
        assert code == 0 and await phase(w, tenant) == "mongo", told
        assert await w.mongo["leads"].find_one({"_id": lead}) is not None
        await w.settled()
        await assert_both_ways_equal(w)


async def _held_at_the_decision(w: World, tenant: UUID) -> None:
    """Somebody holds the tenant's row: past the deadline nothing is decided, and it can write again."""
    closed = {"CROSSFADE_FAILPOINTS": "rollback.closed=hold:1:0.5"}  # time to take the row in
    move = asyncio.create_task(once(w, "rollback", str(tenant), "--deadline", str(_DEADLINE), **closed))
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
    async with application(w, tenant) as sql:
        await sql.execute(LEAD, uuid4(), tenant)
    await brought_back(w)

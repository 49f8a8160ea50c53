"""The way back's lag, by heartbeats: what is not sent, and what is not written, makes it grow."""

from __future__ import annotations

from pathlib import Path
from uuid import UUID, uuid4

import orjson

from tests.e2e.test_way_back import at_rest
from tests.support.way_back import application, stands_still
from tests.support.world import World, once, settings, world
from worker.cutover import checks
from worker.cutover.ground import opened
from worker.embedded import Services

_LITTLE, _MUCH = 4.0, 6.0  # seconds
_LEAD = "INSERT INTO leads (id, tenant_id, email) VALUES ($1, $2, 'a@b.example')"
_LAG = """
SELECT (coalesce(extract(epoch FROM clock_timestamp() - min(heartbeat_at)), 1e6) * 1000)::bigint
FROM crossfade.reverse_progress
"""
_LONG_GONE = """
INSERT INTO crossfade.reverse_progress
SELECT topic, 1000, now() - interval '1 hour' FROM crossfade.reverse_progress
UNION SELECT 'of another mapping', 0, now() - interval '1 hour'
"""


async def _until_little(w: World) -> None:
    await w.until_async("the way back has caught up", lambda: _is(w, below=True))
    code, told = await once(w, "status", "--json")
    assert code == 0 and 0 <= orjson.loads(told)["way_back"]["lag_seconds"] < 2 * _LITTLE, told


async def _until_much(w: World) -> None:
    await w.until_async("the way back falls behind", lambda: _is(w, below=False))


async def _is(w: World, *, below: bool) -> bool:
    lag = await w.value(_LAG) / 1000
    return lag < _LITTLE if below else lag > _MUCH


async def test_its_lag_tells_what_has_not_come_through(services: Services, tmp_path: Path) -> None:
    async with world(services, tmp_path) as w:
        tenant, _ = await at_rest(w)
        await _until_little(w)
        await _not_sent(w, tenant)
        await _until_little(w)
        await _not_written(w, tenant)
        await _until_little(w)
        await w.execute(_LONG_GONE)  # as another process does whose mapping is older
        await _until_little(w)
        await _canary(w)


async def _canary(w: World) -> None:
    """It goes both ways, and says which one it did not come."""
    ask, _ = checks._CHECKS["way-back"]
    async with opened(settings(w), "check") as ground:
        ground.patience = 3.0
        assert await ask(ground, []) == (True, "proven by a canary, both ways", "")
        await w.kill("apply")
        lost = await ask(ground, [])
        assert not lost[0] and "did not come from MongoDB to PostgreSQL within 3 s" in lost[1], lost
        await w.kill("reverse")
        lost = await ask(ground, [])
        assert not lost[0] and "did not come to MongoDB within 3 s" in lost[1], lost


async def _not_sent(w: World, tenant: UUID) -> None:
    """A publisher has taken a row and stands still; another one's heartbeats come through."""
    await w.kill("reverse")
    async with application(w, tenant) as sql:
        await sql.execute(_LEAD, uuid4(), tenant)
    await stands_still(w, "slow", "reverse.after_take", 120)
    await w.start("reverse", "reverse")
    await _until_much(w)
    await w.kill("slow")


async def _not_written(w: World, tenant: UUID) -> None:
    """Somebody holds the document in MongoDB."""
    lead = await w.mongo["leads"].find_one({"tenantId": tenant})
    assert lead is not None
    async with await w.client.start_session() as session:
        session.start_transaction()
        await w.mongo["leads"].update_one({"_id": lead["_id"]}, {"$set": {"score": 1}}, session=session)
        async with application(w, tenant) as sql:
            await sql.execute("UPDATE leads SET score = 2")
        await _until_much(w)
        await session.abort_transaction()

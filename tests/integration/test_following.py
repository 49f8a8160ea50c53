"""What comes in PostgreSQL after a decision: a pause is noted to its end, and what is lost there is told."""

from __future__ import annotations

import asyncio
from uuid import uuid4

from tests.support.world import World, settings
from worker.cutover.following import LOST, end, follow
from worker.cutover.ground import opened
from worker.cutover.hooks import Hooks
from worker.cutover.steps import Result, Steps

_ADD = "INSERT INTO crossfade.tenant (tenant_id, phase, epoch) VALUES ($1, $2::text::crossfade.phase, $3)"
_HOLD = "SELECT 1 FROM crossfade.tenant WHERE tenant_id = $1 FOR UPDATE"
_NOTED = "SELECT (evidence->>'pause_ms')::float8 FROM crossfade.transition WHERE tenant_id = $1"
_OPENING = "SELECT (evidence->'steps_ms'->>'open')::float8 FROM crossfade.transition WHERE tenant_id = $1"
LONG = 1.2  # seconds; more than one try waits for a lock


async def test_the_wait_for_postgresql_is_part_of_the_pause(w: World) -> None:
    tenant, steps = uuid4(), Steps()
    await w.execute(_ADD, tenant, "draining", 1)
    other = await w.connect()
    try:
        async with opened(settings(w), "test") as ground:
            async with other.transaction():
                await other.execute(_HOLD, tenant)
                steps.begin()
                steps.ended("decide")
                following = asyncio.create_task(
                    follow(
                        ground, {tenant: 1}, "draining", "postgres", "", lambda: steps.told("open"), within=30
                    )
                )
                await asyncio.sleep(LONG)
                assert not following.done()
            assert await following
    finally:
        await other.close()
    assert await w.value(_NOTED, tenant) >= LONG * 1000
    assert await w.value(_OPENING, tenant) >= LONG * 1000


async def test_a_change_that_postgresql_has_lost_is_told(w: World) -> None:
    """A failover loses the end of a rollback, and the command asks for it over a new connection."""
    tenant, after = uuid4(), w.directory / "after"
    await w.execute(_ADD, tenant, "rolling_back", 3)
    hooks = Hooks("", f"touch {after}", 30.0)
    async with opened(settings(w), "test") as ground:
        result = await end(ground, hooks, Result([tenant], "mongo"), {tenant: 5})
        assert (result.phase, result.why) == ("", LOST) and not after.exists()
        yet_to_follow = Result([tenant], "mongo", settled=False)
        result = await end(ground, hooks, yet_to_follow, {tenant: 5})
        assert (result.phase, result.why) == ("mongo", "") and after.exists()

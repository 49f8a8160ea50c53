"""How long a tenant could write nowhere is noted to the end, though PostgreSQL lets it wait."""

from __future__ import annotations

import asyncio
from uuid import uuid4

from tests.support.world import World, settings
from worker.cutover.following import follow
from worker.cutover.ground import opened
from worker.cutover.steps import Steps

_ADD = "INSERT INTO crossfade.tenant (tenant_id, phase, epoch) VALUES ($1, 'draining', 1)"
_HOLD = "SELECT 1 FROM crossfade.tenant WHERE tenant_id = $1 FOR UPDATE"
_NOTED = "SELECT (evidence->>'pause_ms')::float8 FROM crossfade.transition WHERE tenant_id = $1"
_OPENING = "SELECT (evidence->'steps_ms'->>'open')::float8 FROM crossfade.transition WHERE tenant_id = $1"
LONG = 1.2  # seconds; more than one try waits for a lock


async def test_the_wait_for_postgresql_is_part_of_the_pause(w: World) -> None:
    tenant, steps = uuid4(), Steps()
    await w.execute(_ADD, tenant)
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

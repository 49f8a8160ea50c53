"""What `control` does for tenants on the move, in the test's own process."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from tests.support.world import World, settings
from worker.cutover.ground import opened
from worker.cutover.keeper import Keeper


@asynccontextmanager
async def keeping(w: World) -> AsyncIterator[None]:
    """Run its keeper meanwhile; raise what it raises."""
    stop = asyncio.Event()
    async with opened(settings(w), "control", alone=True) as ground:
        running = asyncio.create_task(Keeper(ground).run(stop))
        try:
            yield
        finally:
            stop.set()
            await running

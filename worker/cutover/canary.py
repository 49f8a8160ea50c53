"""Barriers, one way and round both ways: what lay before one has come through where it arrives."""

from __future__ import annotations

import asyncio
from uuid import UUID, uuid4

from worker.cutover.ground import Ground
from worker.mongo import barrier, reverse
from worker.postgres import barriers, outbox

ASK_EVERY = 0.004
"""Seconds between looks for what other processes do."""
_WITHIN = 10.0


def within(ground: Ground) -> float:
    """Return the seconds in which a canary must come, each way, while nothing is paused."""
    return min(_WITHIN, ground.patience)


async def goes_back(ground: Ground) -> None:
    """Return when MongoDB has all that was taken out of the outbox, and sent, before this began."""
    asked = uuid4()
    await outbox.ask_barrier(ground.control, asked)
    while not await reverse.arrived(ground.client, asked):  # noqa: ASYNC110 - other processes' work
        await asyncio.sleep(ASK_EVERY)


async def comes_through(ground: Ground, asked: UUID) -> barriers.Arrived:
    """Return when PostgreSQL has all that MongoDB had before a barrier that is in its stream."""
    while not (told := await barriers.arrived(ground.control, asked)).everywhere:  # noqa: ASYNC110
        await asyncio.sleep(ASK_EVERY)
    return told


async def goes_round(ground: Ground) -> str:
    """Send a canary from PostgreSQL to MongoDB, and one back; return what did not come, "" if both did."""
    try:
        async with asyncio.timeout(within(ground)):
            await goes_back(ground)
    except TimeoutError:
        return "a canary did not come to MongoDB"
    if not await comes(ground, within(ground)):
        return "a canary did not come from MongoDB to PostgreSQL"
    return ""


async def comes(ground: Ground, seconds: float) -> bool:
    """Send a canary from MongoDB to PostgreSQL; return whether it came within so many seconds."""
    asked = uuid4()
    await barrier.write(ground.client, ground.settings.publisher, asked)
    try:
        async with asyncio.timeout(seconds):
            await comes_through(ground, asked)
    except TimeoutError:
        return False
    await barriers.forget(ground.control, [asked], [], [])
    return True

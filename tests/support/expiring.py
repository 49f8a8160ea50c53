"""TTL indexes that delete soon, and only what a test wants."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from datetime import UTC, datetime
from typing import Any
from uuid import UUID

from tests.support.world import World

LONG_AGO = datetime(1999, 12, 31, 23, 59, 59, tzinfo=UTC)
_DECADES = 20 * 365 * 86_400  # seconds; the reference application's own documents are younger


async def grow_old(w: World, tenant: UUID, count: int) -> list[dict[str, Any]]:
    """Give leads of a tenant a date that is due, once there is an index; return them."""
    some = await w.mongo["leads"].find({"tenantId": tenant}).sort("_id", 1).to_list(count)
    ids = [one["_id"] for one in some]
    await w.mongo["leads"].update_many({"_id": {"$in": ids}}, {"$set": {"createdAt": LONG_AGO}})
    return await w.mongo["leads"].find({"_id": {"$in": ids}}).sort("_id", 1).to_list(None)


async def ttl_index(w: World) -> None:
    """Make the index, by which MongoDB deletes what has grown old."""
    await w.mongo["leads"].create_index("createdAt", name="old_leads", expireAfterSeconds=_DECADES)


@asynccontextmanager
async def expiring(w: World) -> AsyncIterator[None]:
    """Have MongoDB look every second for what is due."""
    before = await w.client.admin.command("setParameter", 1, ttlMonitorSleepSecs=1)
    try:
        yield
    finally:
        await w.client.admin.command("setParameter", 1, ttlMonitorSleepSecs=before["was"])

"""A database that is copied and followed: where most tests of what happens then begin."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

from tests.support.world import World, world
from worker.embedded import Services


@asynccontextmanager
async def followed(services: Services, directory: Path, documents: int) -> AsyncIterator[World]:
    """Yield a world of so many documents, all of them applied; publish and apply run."""
    async with world(services, directory) as w:
        await w.load(documents)
        await w.start("publish", "publish")
        await w.start("apply", "apply")
        await w.settled()
        yield w

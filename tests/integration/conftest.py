from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path

import pytest
import pytest_asyncio

from tests.support.world import World, world
from worker.embedded import Services
from worker.mongo.fence_documents import FenceDocuments


@pytest_asyncio.fixture
async def w(services: Services, tmp_path: Path) -> AsyncIterator[World]:
    async with world(services, tmp_path) as made:
        yield made


@pytest.fixture
def fences(w: World) -> FenceDocuments:
    return FenceDocuments(w.client, w.name)

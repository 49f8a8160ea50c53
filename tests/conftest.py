from __future__ import annotations

from collections.abc import AsyncIterator

import pytest
import pytest_asyncio

from worker.embedded import Services


@pytest_asyncio.fixture(scope="session", loop_scope="session")
async def services(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Services]:
    directory = tmp_path_factory.mktemp("services")
    try:
        yield await Services.up(directory)
    finally:
        await Services.down(directory)

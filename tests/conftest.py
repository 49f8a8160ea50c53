from __future__ import annotations

import signal
from collections.abc import AsyncIterator

import pytest
import pytest_asyncio

from worker.embedded import Services

pytest_plugins = ["tests.turns"]

# Started in the background, as by nohup, we ignore Ctrl-C; so would every command that a test starts.
signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest_asyncio.fixture(scope="session", loop_scope="session")
async def services(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Services]:
    directory = tmp_path_factory.mktemp("services")
    try:
        yield await Services.up(directory)
    finally:
        await Services.down(directory)

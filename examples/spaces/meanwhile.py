"""An application that writes while something else goes on."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Protocol


class Runs(Protocol):
    """A writer."""

    async def run(self, stop: asyncio.Event) -> None:
        """Write until ``stop``; at the end every write's outcome is known."""


@asynccontextmanager
async def writing(writer: Runs) -> AsyncIterator[None]:
    """Let it write while the block runs; at its end every write's outcome is known."""
    stop = asyncio.Event()
    running = asyncio.create_task(writer.run(stop))
    try:
        yield
    finally:
        stop.set()
        await running

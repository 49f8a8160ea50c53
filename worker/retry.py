"""Retrying with exponential backoff and full jitter; and waiting between looks."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Backoff:
    """Delays in seconds that double from ``first`` to ``longest``, each cut by a random share.

    The jitter keeps processes that failed together from coming back together.
    """

    first: float = 0.1
    longest: float = 5.0

    def delays(self) -> Iterator[float]:
        """Yield delays without end."""
        ceiling = self.first
        while True:
            yield ceiling * random.uniform(0.5, 1.0)  # noqa: S311 - jitter is no secret
            ceiling = min(ceiling * 2, self.longest)


async def pause(stop: asyncio.Event, seconds: float) -> None:
    """Wait for so long, or until ``stop`` is set."""
    with suppress(TimeoutError):
        async with asyncio.timeout(seconds):
            await stop.wait()

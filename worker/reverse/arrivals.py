"""Barriers of rollbacks: that they have arrived is noted in MongoDB."""

from __future__ import annotations

import asyncio
from collections.abc import Iterable, Sequence
from uuid import UUID

from topics import Event, Operation
from worker.errors import Transient
from worker.mongo import reverse
from worker.mongo.client import Client
from worker.mongo.reverse import Arrival
from worker.retry import Backoff


class _Together:
    """Arrivals that are to be written in one go. ``done``: they are."""

    def __init__(self) -> None:
        self.arrivals: list[Arrival] = []
        self.done = False


class Arrivals:
    """Notes barriers' arrivals in MongoDB: those that come while others are written are written together.

    A barrier comes through all partitions at once, and each write waits for a majority.
    """

    def __init__(self, client: Client) -> None:
        self._client = client
        self._next = _Together()
        self._writing = asyncio.Lock()

    async def note(self, arrivals: Iterable[Arrival]) -> None:
        """Return when MongoDB has them. Whoever is first of those that wait writes for all of them."""
        together = self._next
        together.arrivals += arrivals
        async with self._writing:
            if together is self._next:
                self._next = _Together()
            if not together.done:  # nobody has, or whoever began was broken off
                await self._write(together.arrivals)
                together.done = True

    async def _write(self, arrivals: Sequence[Arrival]) -> None:
        for delay in Backoff().delays():
            try:
                await reverse.arrive(self._client, arrivals)
                return
            except Transient:
                await asyncio.sleep(delay)


def arrival(event: Event, topic: str, partition: int) -> Arrival | None:
    """Return what an event tells of a barrier, if it is one."""
    match event.operation, event.id:
        case Operation.BARRIER, {"barrier": UUID() as barrier, "partitions": int(partitions)}:
            return Arrival(barrier, topic, partition, partitions)
        case _:
            return None

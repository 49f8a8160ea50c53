"""The heartbeat: a document of ours, written often, that travels through the change stream."""

from __future__ import annotations

import asyncio
import time
from collections import deque
from datetime import UTC, datetime
from typing import Any

import structlog
from bson import Timestamp
from pymongo import WriteConcern
from pymongo.errors import PyMongoError

from worker.mongo.client import Client, describe
from worker.retry import Backoff

DATABASE = "crossfade"
COLLECTION = "heartbeat"
NAMESPACE = f"{DATABASE}.{COLLECTION}"
_MOST_WAITING = 10_000  # beats remembered: while apply is further behind, newer ones tell nothing more

_log = structlog.get_logger()


class Heartbeat:
    """Writes the publisher's heartbeat document with majority write concern."""

    def __init__(self, client: Client, publisher: str) -> None:
        self._client = client
        majority = WriteConcern("majority", wtimeout=10_000)
        self._collection = client[DATABASE].get_collection(COLLECTION, write_concern=majority)
        self._publisher = publisher
        self._count = 0
        self._waiting: deque[tuple[int, float]] = deque()

    async def beat(self) -> Timestamp:
        """Write once; return the clusterTime of the write, which can no longer be rolled back.

        Not by `command`, which raises nothing when only the majority has not answered.
        """
        self._count += 1
        document = {"_id": self._publisher, "at": datetime.now(UTC), "n": self._count}
        async with await self._client.start_session() as session:
            await self._collection.replace_one(
                {"_id": self._publisher}, document, upsert=True, session=session
            )
            at: Any = session.operation_time  # a property, which motor's types take for a method
        if len(self._waiting) < _MOST_WAITING:
            self._waiting.append((at.time << 32 | at.inc, time.monotonic()))
        return at

    def waits(self, applied: int) -> float:
        """Return for how many seconds the oldest beat of this process is on its way that is newer than
        ``applied``, a clusterTime as one integer; 0: none is.

        By this process's clock alone: a server's may be hours away from it, or stepped.
        """
        while self._waiting and self._waiting[0][0] <= applied:
            self._waiting.popleft()
        return time.monotonic() - self._waiting[0][1] if self._waiting else 0.0

    async def run(self, interval: float) -> None:
        """Write every ``interval`` seconds until cancelled; a failed write is tried again, told once."""
        delays = Backoff(first=0.2, longest=interval + 1).delays()
        failing = False
        while True:
            try:
                await self.beat()
            except PyMongoError as error:
                if not failing:
                    _log.warning("heartbeat not written, trying again", error=describe(error))
                failing = True
                await asyncio.sleep(next(delays))
                continue
            if failing:
                _log.info("heartbeat written again")
                delays = Backoff(first=0.2, longest=interval + 1).delays()
            failing = False
            await asyncio.sleep(interval)

"""The heartbeat: a document of ours, written often, that travels through the change stream."""

from __future__ import annotations

import asyncio
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

_log = structlog.get_logger()


class Heartbeat:
    """Writes the publisher's heartbeat document with majority write concern."""

    def __init__(self, client: Client, publisher: str) -> None:
        self._client = client
        majority = WriteConcern("majority", wtimeout=10_000)
        self._collection = client[DATABASE].get_collection(COLLECTION, write_concern=majority)
        self._publisher = publisher
        self._count = 0

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
            time: Any = session.operation_time  # a property, which motor's types take for a method
        return time

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

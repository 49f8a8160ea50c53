"""The heartbeat: a document of ours, written often, that travels through the change stream."""

from __future__ import annotations

import asyncio
from datetime import UTC, datetime

import structlog
from bson import Timestamp
from pymongo.errors import OperationFailure, PyMongoError

from worker.mongo.client import Client, describe
from worker.retry import Backoff

DATABASE = "crossfade"
COLLECTION = "heartbeat"
NAMESPACE = f"{DATABASE}.{COLLECTION}"

_log = structlog.get_logger()


class Heartbeat:
    """Writes the publisher's heartbeat document with majority write concern."""

    def __init__(self, client: Client, publisher: str) -> None:
        self._database = client[DATABASE]
        self._publisher = publisher
        self._count = 0

    async def beat(self) -> Timestamp:
        """Write once; return the clusterTime of the write, which a majority has."""
        self._count += 1
        document = {"_id": self._publisher, "at": datetime.now(UTC), "n": self._count}
        reply = await self._database.command(
            {
                "update": COLLECTION,
                "updates": [{"q": {"_id": self._publisher}, "u": document, "upsert": True}],
                "writeConcern": {"w": "majority", "wtimeout": 10_000},
            }
        )
        # A command that could not write, or not to a majority, has not failed: its reply says so.
        refused = [*reply.get("writeErrors", ()), *filter(None, [reply.get("writeConcernError")])]
        if refused:
            raise OperationFailure("the heartbeat was not written", refused[0]["code"], refused[0])
        return reply["operationTime"]

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

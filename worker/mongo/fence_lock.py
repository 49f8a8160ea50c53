"""Who may set validators: one lock for a migration's, in MongoDB, and turns among one command's moves."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any
from uuid import uuid4

import structlog
from pymongo import ReadPreference, ReturnDocument, WriteConcern
from pymongo.errors import DuplicateKeyError, PyMongoError

from worker.mongo.client import Client, describe
from worker.mongo.fence_documents import DATABASE, MAJORITY_MS
from worker.mongo.validation import OURS
from worker.retry import Backoff

_log = structlog.get_logger()

LOCKS = "fence_lock"
"""Our collection of locks."""

_ASK_EVERY = 0.003
_MARGIN = 1.0  # seconds for which the lock is held beyond what a collMod of it may take
_LEFT = {"$ifNull": ["$left", []]}
_LONG_AGO = datetime(1970, 1, 1, tzinfo=UTC)


class InTheWay(Exception):
    """A collMod did not get its collection in time, or an index is being built there.

    ``sent``: the collections to which one was sent; it may have taken effect, or may yet.
    """

    def __init__(self, namespace: str, why: str) -> None:
        super().__init__(f"{namespace}: {why}")
        self.namespace, self.why = namespace, why
        self.sent: Sequence[str] = ()


class Held(InTheWay):
    """Open transactions, or many writes, hold the collection."""

    def __init__(self, namespace: str) -> None:
        super().__init__(namespace, "an open transaction, or many writes, hold it")


@dataclass(slots=True)
class Turns:
    """What the moves of one command share."""

    fencing: asyncio.Lock = field(default_factory=asyncio.Lock)
    """Whose turn it is to begin a pause, and to fence."""
    patience: dict[str, float] = field(default_factory=dict)
    """Seconds that the next collMod waits for a collection which the last one did not get, by its name."""


@dataclass(slots=True)
class Attempt:
    """A holder of the lock. ``name`` is each of its collMods' comment."""

    name: str
    until: float
    """By this process's monotonic clock: nothing is sent that could take effect later. 0: given back."""
    answered: bool = True


class FenceLock:
    """The lock of a migration's validators."""

    def __init__(self, client: Client, migration: str, holder: str) -> None:
        self._client, self._migration, self._holder = client, migration, holder
        self._locks: Any = client[DATABASE].get_collection(
            LOCKS,
            write_concern=WriteConcern("majority", wtimeout=MAJORITY_MS),
            read_preference=ReadPreference.PRIMARY,
        )

    async def held(self) -> bool:
        """Whether somebody has it."""
        held = {"_id": self._migration, "$expr": {"$gt": ["$until", "$$NOW"]}}
        return await self._locks.find_one(held) is not None

    async def released(self) -> None:
        """Return when nobody has it."""
        for delay in Backoff(first=_ASK_EVERY, longest=0.03).delays():
            if not await self.held():
                return
            await asyncio.sleep(delay)

    @asynccontextmanager
    async def taken(self, until: float) -> AsyncIterator[Attempt]:
        """Hold it for what is done by a time of the monotonic clock; `InTheWay` while others have it.

        What predecessors had sent is ended first (D5); by the next one, where this one does not come to that.
        """
        name = f"{OURS} {uuid4()}"
        left = await self._take(name, until)
        attempt = Attempt(name, until)
        try:
            if left:
                await self._end(left, until)
                left = []
            yield attempt
        finally:
            attempt.until = 0.0  # whatever is yet to be sent, by a task that nobody waits for, is not
            if not attempt.answered:  # a collMod may be under way still
                left = [*left, name]
            try:
                await self._locks.update_one(
                    {"_id": self._migration, "attempt": name},
                    [{"$set": {"until": "$$NOW", "attempt": None, "left": left}}],
                )
            except PyMongoError as error:  # it runs out by itself
                _log.warning("the fences' lock was not given back", error=describe(error))

    async def _take(self, name: str, until: float) -> list[str]:
        """Take it; return the attempts whose collMods may be under way still."""
        while True:
            seconds = max(0.0, until - time.monotonic()) + _MARGIN
            new = {
                "attempt": name,
                "holder": self._holder,
                "left": {"$setUnion": [_LEFT, {"$cond": ["$attempt", ["$attempt"], []]}]},
                "until": {"$add": ["$$NOW", round(seconds * 1000)]},
            }
            taken = await self._locks.find_one_and_update(
                {"_id": self._migration, "$expr": {"$lte": ["$until", "$$NOW"]}},
                [{"$set": new}],
                return_document=ReturnDocument.AFTER,
            )
            if taken is not None:
                return taken["left"]
            try:
                await self._locks.insert_one({"_id": self._migration, "until": _LONG_AGO})
            except DuplicateKeyError:
                if time.monotonic() > until:
                    raise InTheWay("all collections", "another move holds the fences' lock") from None
                await asyncio.sleep(_ASK_EVERY)

    async def _end(self, attempts: list[str], until: float) -> None:
        """End what was sent under these names; return when the primary shows none."""
        while True:
            pipeline = [
                {"$currentOp": {"allUsers": True, "localOps": True}},
                {"$match": {"command.comment": {"$in": attempts}}},
            ]
            sent = [one async for one in self._client.admin.aggregate(pipeline)]
            if not sent:
                return
            for one in sent:
                await self._client.admin.command({"killOp": 1, "op": one["opid"]})
            if time.monotonic() > until:
                raise InTheWay("?", "a collMod of another controller does not end")
            await asyncio.sleep(_ASK_EVERY)

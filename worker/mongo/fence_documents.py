"""Fence documents: where each tenant's writes go, as MongoDB decides it (docs/protocol.md D1, D2).

One document for each tenant that was ever on the move, in a database of ours. Every change is one
compare-and-set on state and exact epoch, acknowledged by a majority.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Iterable, Mapping, Sequence
from datetime import datetime
from enum import StrEnum
from typing import Any, NamedTuple
from uuid import UUID

from bson import ObjectId
from bson.binary import Binary
from pymongo import ReadPreference, WriteConcern
from pymongo.errors import OperationFailure, PyMongoError
from pymongo.read_concern import ReadConcern

from worker.mongo import heartbeat
from worker.mongo.client import Client
from worker.retry import Backoff

DATABASE = heartbeat.DATABASE
COLLECTION = "fence"
MAJORITY_MS = 3_000
CONFLICTS_WITHIN = 0.3
"""Seconds in which a change that met another one, which has not ended, is tried again."""
_UNANSWERED = "MongoDB did not answer"
_CONFLICT, _DUPLICATE = 112, 11000
LEASE = 2.0
"""Seconds after which a successor takes over what its holder has not brought to an end."""

Value = UUID | ObjectId | str | int | float | bool | Binary
"""A tenant's id as MongoDB's documents hold it."""


class State(StrEnum):
    """What a fence document says of its tenant."""

    HOME = "home"  # its writes are MongoDB's
    DRAINING = "draining"  # MongoDB refuses them, or is about to
    LEFT = "left"  # MongoDB refuses them: PostgreSQL may take them
    ABORTING = "aborting"  # MongoDB takes them again, as soon as its validators say so


REFUSED = frozenset({State.DRAINING, State.LEFT})
"""States in which validators refuse the tenant."""


class Fence(NamedTuple):
    """A fence document. ``overdue``: whether its holder has not said for too long that it lives.

    ``seconds``: since it was changed, by MongoDB's clock.
    """

    tenant: UUID
    epoch: int
    state: State
    values: tuple[Value, ...]
    holder: str
    changed_at: datetime
    overdue: bool
    seconds: float
    floor: int | None
    """Of a tenant that a rollback brought home: below it nothing may change its rows."""


class Unclear(Exception):
    """It cannot be told whether a change was made, or could be: read the documents again."""


class FenceDocuments:
    """The fence documents of one migration."""

    def __init__(self, client: Client, migration: str) -> None:
        self._client, self._migration = client, migration
        self._collection: Any = client[DATABASE].get_collection(
            COLLECTION,
            write_concern=WriteConcern("majority", wtimeout=MAJORITY_MS),
            read_concern=ReadConcern("majority"),
            read_preference=ReadPreference.PRIMARY,
        )

    async def read(self) -> dict[UUID, Fence]:
        """Return all that a majority has; a tenant that is missing has never left home."""
        pipeline = [
            {"$match": {"_id.migration": self._migration}},
            {
                "$set": {
                    "overdue": {"$lt": ["$until", "$$NOW"]},
                    "seconds": {"$divide": [{"$subtract": ["$$NOW", "$changed_at"]}, 1000]},
                }
            },
        ]
        cursor = self._collection.aggregate(pipeline, maxTimeMS=MAJORITY_MS)
        return {one["_id"]["tenant"]: _fence(one) async for one in cursor}

    async def leave(
        self,
        epochs: Mapping[UUID, int],
        values: Mapping[UUID, Sequence[Value]],
        by: str,
        lease: float = LEASE,
    ) -> bool:
        """``home``, of an earlier epoch, becomes ``draining``. False: some tenant was not at home.

        The holder has ``lease`` seconds to decide.
        ``values``: what the tenants' ids may be in MongoDB's documents, from which validators are made.
        """
        wanted = {tenant: {"state": State.HOME, "epoch": {"$lt": epoch}} for tenant, epoch in epochs.items()}
        return await self._change(epochs, wanted, State.DRAINING, by, values, lease)

    async def decide_left(self, epochs: Mapping[UUID, int], by: str) -> bool:
        """``draining`` of this holder becomes ``left``: from now on only PostgreSQL may take their writes."""
        wanted = {
            tenant: {"state": State.DRAINING, "epoch": epoch, "holder": by}
            for tenant, epoch in epochs.items()
        }
        return await self._change(epochs, wanted, State.LEFT, by)

    async def decide_abort(self, epochs: Mapping[UUID, int], by: str) -> bool:
        """Whatever has not left becomes ``aborting``, also what is at ``home`` still (D2)."""
        wanted = {
            tenant: {
                "$or": [
                    {"state": State.HOME, "epoch": {"$lt": epoch}},
                    {"state": {"$in": [State.DRAINING, State.ABORTING]}, "epoch": epoch},
                ]
            }
            for tenant, epoch in epochs.items()
        }
        return await self._change(epochs, wanted, State.ABORTING, by)

    async def come_home(self, epochs: Mapping[UUID, int], by: str) -> bool:
        """``aborting`` of these epochs becomes ``home``."""
        wanted = {tenant: {"state": State.ABORTING, "epoch": epoch} for tenant, epoch in epochs.items()}
        return await self._change(epochs, wanted, State.HOME, by)

    async def come_back(self, epochs: Mapping[UUID, int], floors: Mapping[UUID, int], by: str) -> bool:
        """``left`` of an earlier epoch becomes ``home``, for PostgreSQL has decided a rollback.

        With its epoch and floor, so that PostgreSQL can be told what it had decided, should it lose that.
        """
        wanted = {tenant: {"state": State.LEFT, "epoch": {"$lt": epoch}} for tenant, epoch in epochs.items()}
        return await self._change(epochs, wanted, State.HOME, by, floors=floors)

    async def _change(
        self,
        epochs: Mapping[UUID, int],
        wanted: Mapping[UUID, Mapping[str, Any]],
        to: State,
        by: str,
        values: Mapping[UUID, Sequence[Value]] | None = None,
        lease: float = LEASE,
        floors: Mapping[UUID, int] | None = None,
    ) -> bool:
        """Change all of these documents, or none; `Unclear` when the answer was lost.

        A conflict says that another change was under way, or only that the server was busy. So it is tried
        again for a moment: it matches then, or another one has come first. Beyond, it is `Unclear` too.
        """
        changes = [
            (
                tenant,
                wanted[tenant],
                _new(epoch, to, by, lease, (values or {}).get(tenant), (floors or {}).get(tenant)),
            )
            for tenant, epoch in epochs.items()
        ]
        until = time.monotonic() + CONFLICTS_WITHIN
        for delay in Backoff(first=0.005, longest=0.05).delays():
            try:
                return await self._once(changes, to)
            except OperationFailure as error:
                unclear = error.has_error_label("UnknownTransactionCommitResult")
                if unclear or error.code not in (_CONFLICT, _DUPLICATE):
                    raise Unclear(_UNANSWERED) from error
                if time.monotonic() > until:
                    raise Unclear("another change of its fence document does not end") from error
            except PyMongoError as error:
                raise Unclear(_UNANSWERED) from error
            await asyncio.sleep(delay)
        raise AssertionError

    async def _once(
        self, changes: Sequence[tuple[UUID, Mapping[str, Any], Mapping[str, Any]]], to: State
    ) -> bool:
        """Try it: for each tenant what its document must be, and what is set then."""
        concern = self._collection.write_concern
        async with (
            await self._client.start_session() as session,
            session.start_transaction(write_concern=concern, max_commit_time_ms=MAJORITY_MS),
        ):
            for tenant, wanted, new in changes:
                if not await self._one(session, tenant, wanted, to, new):
                    await session.abort_transaction()
                    return False
        return True

    async def _one(
        self, session: Any, tenant: UUID, wanted: Mapping[str, Any], to: State, new: Mapping[str, Any]
    ) -> bool:
        collection = self._client[DATABASE][COLLECTION]
        result = await collection.update_one(
            {"_id": self._id(tenant), **wanted}, [{"$set": new}], session=session
        )
        if result.matched_count:
            return True
        known = await collection.find_one({"_id": self._id(tenant)}, session=session)
        if known is not None or to not in (State.DRAINING, State.ABORTING):
            return False
        # Its first move: without a document a tenant is at home, with epoch 0.
        await collection.update_one(
            {"_id": self._id(tenant)}, [{"$set": {"values": [], **new}}], upsert=True, session=session
        )
        return True

    def _id(self, tenant: UUID) -> dict[str, Any]:
        return {"migration": self._migration, "tenant": tenant}


def _new(
    epoch: int, to: State, by: str, lease: float, values: Sequence[Value] | None, floor: int | None
) -> Mapping[str, Any]:
    told = {} if values is None else {"values": {"$literal": list(values)}}
    return told | {
        "state": to,
        "epoch": epoch,
        "holder": by,
        "floor": floor,
        "changed_at": "$$NOW",
        "until": {"$add": ["$$NOW", round(lease * 1000)]},
    }


def refused(fences: Iterable[Fence]) -> list[Fence]:
    """Return those whose tenants MongoDB must refuse, in one order."""
    return sorted((one for one in fences if one.state in REFUSED), key=lambda one: one.tenant)


def _fence(document: Mapping[str, Any]) -> Fence:
    return Fence(
        document["_id"]["tenant"],
        document["epoch"],
        State(document["state"]),
        tuple(document.get("values") or ()),
        document["holder"],
        document["changed_at"],
        bool(document["overdue"]),
        document["seconds"],
        document.get("floor"),
    )

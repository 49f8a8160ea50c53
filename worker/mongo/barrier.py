"""The barrier: a document of ours that travels through the change stream, behind all that came before it."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Any
from uuid import UUID

from pymongo import WriteConcern

from worker.mongo.client import Client
from worker.mongo.heartbeat import COLLECTION, DATABASE

FIELD = "barrier"


async def write(client: Client, publisher: str, barrier: UUID) -> int:
    """Write a barrier for a publisher, acknowledged by a majority; return its clusterTime, as one integer.

    Publish sends it to every partition.
    Written after a fence's last collMod, it comes behind every write that the fence let in.
    """
    majority = WriteConcern("majority", wtimeout=5_000)
    collection = client[DATABASE].get_collection(COLLECTION, write_concern=majority)
    document = {"_id": f"{publisher} {FIELD}", FIELD: barrier, "at": datetime.now(UTC)}
    async with await client.start_session() as session:
        await collection.replace_one({"_id": document["_id"]}, document, upsert=True, session=session)
        at: Any = session.operation_time  # a property, which motor's types take for a method
    return at.time << 32 | at.inc

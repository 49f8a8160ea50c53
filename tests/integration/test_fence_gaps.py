"""A fence gets in between the transactions of an application whose threads, or connections, are few."""

from __future__ import annotations

import asyncio
from contextlib import suppress
from pathlib import Path
from uuid import UUID, uuid4

from pymongo import AsyncMongoClient
from pymongo.errors import PyMongoError

from tests.support.world import world
from worker.embedded import Services
from worker.mongo.validators import Validators

_BURST, _FENCES, _WITHIN = 400, 5, 1.0
_THREADS = 4


async def test_writes_that_wait_for_a_fence_do_not_keep_it_waiting(
    services: Services, tmp_path: Path
) -> None:
    """They hold the threads which the transactions need that the collMod waits for."""
    done, threads = 0, asyncio.Semaphore(_THREADS)
    async with (
        world(services, tmp_path) as w,
        AsyncMongoClient(services.mongo_uri, uuidRepresentation="standard") as client,
    ):
        leads = client[w.name]["leads"]

        async def changes(lead: UUID) -> None:
            nonlocal done
            async with threads:
                await leads.update_one({"_id": lead}, {"$set": {"name": "changed"}})
            done += 1

        async def deletes(lead: UUID) -> None:
            async with client.start_session() as session:
                await session.start_transaction()
                with suppress(PyMongoError):  # MongoDB lets it wait but for 5 ms where it has no lock yet
                    async with threads:
                        await leads.update_one({"_id": lead}, {"$set": {"name": "gone"}}, session=session)
                    async with threads:
                        await leads.delete_one({"_id": lead}, session=session)
                    async with threads:
                        await session.commit_transaction()

        validators = Validators(w.client, w.mapping, w.name, "test")
        for _ in range(_FENCES):
            made = [{"_id": uuid4(), "tenantId": uuid4(), "email": "a@b.example"} for _ in range(_BURST)]
            await leads.insert_many(made)
            before = done
            async with asyncio.TaskGroup() as burst:
                for number, lead in enumerate(made):
                    burst.create_task((changes if number % 8 else deletes)(lead["_id"]))
                # Some transactions are open now, whose second statement stands behind the other writes.
                await w.until("it writes", lambda: done > before + 5)  # noqa: B023
                await validators.fence((), _WITHIN)

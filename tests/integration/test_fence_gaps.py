"""A fence gets in between the transactions of an application whose threads, or connections, are few."""

from __future__ import annotations

import asyncio
import time
from contextlib import suppress
from pathlib import Path
from random import Random
from uuid import UUID, uuid4

from pymongo import AsyncMongoClient
from pymongo.errors import PyMongoError

from tests.support.world import world
from worker.embedded import Services
from worker.mongo.fence_lock import InTheWay, Turns
from worker.mongo.validators import Validators
from worker.retry import Backoff

_BURST, _FENCES, _THREADS = 240, 5, 4
_AS_LONG = 5  # times as long as a burst takes alone, a fence may take beside it
_WITHIN = 1.0
_LASTS, _TOGETHER = (0.4, 0.8), 6  # seconds that a transaction is open, and how many are


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
        alone = 0.0
        for number in range(_FENCES + 1):
            made = [{"_id": uuid4(), "tenantId": uuid4(), "email": "a@b.example"} for _ in range(_BURST)]
            await leads.insert_many(made)
            before, began = done, time.monotonic()
            async with asyncio.TaskGroup() as burst:
                for place, lead in enumerate(made):
                    burst.create_task((changes if place % 8 else deletes)(lead["_id"]))
                if number:
                    # Some transactions are open now, whose second statement stands behind the other writes.
                    await w.until("it writes", lambda: done > before + 5)  # noqa: B023
                    await validators.fence((), max(_WITHIN, _AS_LONG * alone))
            alone = alone or time.monotonic() - began
        print(f"a burst takes {alone:.2f} s")


async def test_transactions_that_last_are_waited_for_at_last(services: Services, tmp_path: Path) -> None:
    """Each begins while another one is open, so no short try ever finds none; those after a long one wait."""
    stop = asyncio.Event()
    async with (
        world(services, tmp_path) as w,
        AsyncMongoClient(services.mongo_uri, uuidRepresentation="standard") as client,
    ):
        leads = client[w.name]["leads"]
        await leads.insert_one({"_id": uuid4(), "tenantId": uuid4()})

        async def lasting(times: Random) -> None:
            while not stop.is_set():
                async with client.start_session() as session:
                    await session.start_transaction()
                    with suppress(PyMongoError):  # MongoDB lets it wait but for 5 ms where it has no lock yet
                        await leads.insert_one({"_id": uuid4(), "tenantId": uuid4()}, session=session)
                        await asyncio.sleep(times.uniform(*_LASTS))
                        await session.commit_transaction()

        turns = Turns()
        lasts = [asyncio.create_task(lasting(Random(n))) for n in range(_TOGETHER)]
        try:
            for _ in range(3):
                async with asyncio.timeout(30):
                    for delay in Backoff(first=0.02, longest=0.5).delays():  # as a move in its window
                        try:
                            validators = Validators(w.client, w.mapping, w.name, "test", turns)
                            await validators.fence((), _WITHIN)
                            break
                        except InTheWay:
                            await asyncio.sleep(delay)
        finally:
            stop.set()
            await asyncio.gather(*lasts)

"""The way back's process ends when it has lost its session, and leaves nothing open, however it ends."""

from __future__ import annotations

import asyncio
import time
from pathlib import Path

from tests.e2e.test_way_back import at_rest
from tests.support.hands import administering
from tests.support.way_back import application, assert_both_ways_equal, brought_back
from tests.support.world import World, world
from worker.embedded import Services
from worker.mongo.client import connect
from worker.mongo.in_the_way import OpenTransaction, open_transactions

_END = "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE application_name = 'crossfade reverse'"
_WITHIN = 20.0
_OPEN_FOR = 45.0  # seconds, for a machine that is busy; MongoDB itself takes 60
_FIRST = 1_000_000  # a score that no lead has


async def _newest(w: World) -> float:
    found = await w.mongo["leads"].find_one({}, sort=[("score", -1)])
    assert found is not None
    return found["score"]


async def _members(w: World) -> int:
    async with administering(w.kafka) as admin:
        (answer,) = await admin.describe_consumer_groups([w.env["CROSSFADE_REVERSE_GROUP"]])
    return sum(len(group[5]) for group in answer.groups)


async def _open(w: World) -> list[OpenTransaction]:
    return [one for one in await open_transactions(w.client, 0.0) if "crossfade reverse" in one.client]


async def test_one_that_loses_its_session_while_it_writes_ends(services: Services, tmp_path: Path) -> None:
    async with world(services, tmp_path) as w:
        w.env["PYTHONFAULTHANDLER"] = "1"
        tenant, _ = await at_rest(w)
        stop = asyncio.Event()

        async def writes() -> None:
            number = _FIRST
            while not stop.is_set():
                number += 1
                async with application(w, tenant) as sql:
                    await sql.execute("UPDATE leads SET score = $1", float(number))

        writing = asyncio.create_task(writes())
        try:
            newest = float(_FIRST)
            for _ in range(3):
                # Newer than what the one before it, which has ended, had written.
                arrived = {"score": {"$gt": newest}}
                await w.until_async("it writes", lambda: w.mongo["leads"].find_one(arrived))  # noqa: B023
                await w.execute(_END)
                try:
                    assert await w.ended("reverse", _WITHIN) == 1
                except TimeoutError:
                    raise AssertionError(w._logs()) from None
                assert not await _open(w), "it leaves a transaction in MongoDB"
                assert await _members(w) == 0, "Kafka takes it for a reader still"
                newest = await _newest(w)
                await w.start("reverse", "reverse")
        finally:
            stop.set()
            await writing
        await brought_back(w)
        await w.settled()
        await assert_both_ways_equal(w)


async def test_what_a_killed_one_left_open_is_ended_by_the_next(services: Services, tmp_path: Path) -> None:
    """MongoDB would end it after 60 s, until which it holds its documents, and every collMod."""
    async with world(services, tmp_path) as w:
        tenant, _ = await at_rest(w)
        await w.kill("reverse")
        lead = await w.mongo["leads"].find_one({"tenantId": tenant})
        assert lead is not None
        # As one leaves it that is killed between its first write and its commit; and another program's.
        killed, other = [await connect(w.env["CROSSFADE_MONGO_URI"], role) for role in ("reverse", "other")]
        try:
            left, foreign = await killed.start_session(), await other.start_session()
            left.start_transaction()
            await killed[w.name]["leads"].update_one(
                {"_id": lead["_id"]}, {"$set": {"score": 1}}, session=left
            )
            foreign.start_transaction()
            await other[w.name]["pages"].update_one({}, {"$set": {"title": "theirs"}}, session=foreign)
            async with application(w, tenant) as sql:
                await sql.execute("UPDATE leads SET score = $1", float(_FIRST))
            since = time.monotonic()
            await w.start("reverse", "reverse")
            arrived = {"_id": lead["_id"], "score": _FIRST}
            await w.until_async("it arrives", lambda: w.mongo["leads"].find_one(arrived))
            assert time.monotonic() - since < _OPEN_FOR
            await foreign.commit_transaction()
        finally:
            killed.close()
            other.close()

"""The way back's process ends when it has lost its session, whatever it is doing."""

from __future__ import annotations

import asyncio
from pathlib import Path

from tests.e2e.test_way_back import at_rest
from tests.support.way_back import application, assert_both_ways_equal, brought_back
from tests.support.world import world
from worker.embedded import Services

_END = "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE application_name = 'crossfade reverse'"
_WITHIN = 20.0


async def test_one_that_loses_its_session_while_it_writes_ends(services: Services, tmp_path: Path) -> None:
    async with world(services, tmp_path) as w:
        w.env["PYTHONFAULTHANDLER"] = "1"
        tenant, _ = await at_rest(w)
        stop = asyncio.Event()

        async def writes() -> None:
            number = 0
            async with application(w, tenant) as _:
                pass
            while not stop.is_set():
                number += 1
                async with application(w, tenant) as sql:
                    await sql.execute("UPDATE leads SET score = $1", float(number))

        writing = asyncio.create_task(writes())
        try:
            for _ in range(3):
                arrived = {"score": {"$gt": 3}}
                await w.until_async("it writes", lambda: w.mongo["leads"].find_one(arrived))  # noqa: B023
                await asyncio.sleep(1)
                await w.execute(_END)
                try:
                    assert await w.ended("reverse", _WITHIN) == 1
                except TimeoutError:
                    raise AssertionError(w._logs()) from None
                await w.start("reverse", "reverse")
        finally:
            stop.set()
            await writing
        await brought_back(w)
        await w.settled()
        await assert_both_ways_equal(w)

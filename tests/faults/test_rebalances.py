"""Apply workers join and leave all the time: each record is read, each offset right (docs/protocol.md A8)."""

from __future__ import annotations

import asyncio
from pathlib import Path
from random import Random

import pytest

from tests.support.letters import log
from tests.support.long import LONG
from tests.support.offsets import committed, ends
from tests.support.world import World, world
from worker.embedded import Services
from worker.postgres.migration_log import OUTCOMES

SECONDS = 120 if LONG else 12
MOST = 4


async def _read_to(w: World, places: dict[tuple[str, int], int]) -> None:
    reached = (
        "SELECT count(*) FROM unnest($1::text[], $2::integer[], $3::bigint[]) AS k(topic, partition, ends) "
        "LEFT JOIN crossfade.partition_progress p USING (topic, partition) "
        "WHERE coalesce(p.next_offset, 0) = k.ends"
    )
    topics, numbers = [place[0] for place in places], [place[1] for place in places]
    async with asyncio.timeout(60):
        while await w.value(reached, topics, numbers, list(places.values())) < len(places):  # noqa: ASYNC110
            await asyncio.sleep(0.2)


@pytest.mark.timeout(SECONDS * 3 + 400)
async def test_offsets_and_counts_are_right_though_workers_join_and_leave(
    services: Services, tmp_path: Path
) -> None:
    rng = Random(1)
    async with world(services, tmp_path) as w:
        await w.load(3000, tenants=5)
        await w.start("publish", "publish")
        async with w.writes(120):
            loop = asyncio.get_running_loop()
            until, born, killed, stopped = loop.time() + SECONDS, 0, 0, 0
            while loop.time() < until or min(killed, stopped) < 2:
                here = [name for name in w.processes if name != "publish"]
                if len(here) < MOST and (not here or rng.random() < 0.6):
                    born += 1
                    await w.start("apply", f"apply {born}")
                elif rng.random() < 0.5:
                    await w.kill(rng.choice(here))
                    killed += 1
                else:
                    name = rng.choice(here)
                    if "apply ready" in log(w, name):  # before, SIGTERM just ends it
                        assert await w.stop(name) == 0
                    else:
                        await w.kill(name)
                    stopped += 1
                await asyncio.sleep(rng.uniform(0.5, 2.5))
        if len(w.processes) == 1:
            born += 1
            await w.start("apply", f"apply {born}")
        await w.settled(180)
        await w.assert_nothing_lost()
        assert await w.stop("publish") == 0
        last = await ends(w)
        await _read_to(w, last)
        for name in list(w.processes):
            assert await w.stop(name) == 0
        # Whoever leaves in order has committed what PostgreSQL has; whoever is killed, no more than that.
        assert await committed(w) == last
        connection = await w.connect()
        rows = await connection.fetch("SELECT * FROM crossfade.partition_progress")
        await connection.close()
        for row in rows:
            outcomes = sum(row[name] for name in OUTCOMES)
            assert row["records"] == outcomes >= row["next_offset"]  # none unread, some read twice
            once = row["applied"] + row["absent"] + row["parked"]
            assert once <= row["next_offset"], (row["topic"], row["partition"])
        told = "".join(log(w, f"apply {number}") for number in range(1, born + 1))
        for wrong in ("Traceback", "made anew", "no longer has", "out of their order", "person must act"):
            assert wrong not in told

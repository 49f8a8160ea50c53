"""SIGTERM ends apply and publish in order within 10 s, whatever they are doing or waiting for."""

from __future__ import annotations

import asyncio
import re
import time
from pathlib import Path
from uuid import uuid4

import pytest

from tests.support.busy import busy
from tests.support.letters import log
from tests.support.long import LONG
from tests.support.offsets import committed, ends
from tests.support.proxy import proxy
from tests.support.world import World, world
from worker.embedded import Services

ROLES = ("publish", "apply")


async def _stopped(w: World) -> None:
    """Stop both at once; each ends with 0, in time unless the machine itself is overloaded."""
    excused = busy()
    began = time.monotonic()
    assert await asyncio.gather(*(w.stop(role) for role in ROLES)) == [0, 0]
    assert excused or time.monotonic() - began < 10.5
    for role in ROLES:
        assert "Traceback" not in log(w, role)


async def _insert(w: World, slug: str) -> None:
    page = await w.mongo["pages"].find_one()
    assert page is not None
    await w.mongo["pages"].insert_one({**page, "_id": uuid4(), "slug": slug})


async def _started(w: World) -> None:
    for role in ROLES:
        await w.start(role, role)


@pytest.mark.timeout(600)
async def test_sigterm_ends_both_in_order_idle_loaded_and_while_postgresql_is_away(
    services: Services, tmp_path: Path
) -> None:
    async with world(services, tmp_path) as w:
        match = re.search(r"127\.0\.0\.1:(\d+)", w.env["CROSSFADE_POSTGRES_DSN"])
        assert match is not None
        async with proxy(int(match[1])) as postgres:
            w.env["CROSSFADE_POSTGRES_DSN"] = w.env["CROSSFADE_POSTGRES_DSN"].replace(
                match[0], f"127.0.0.1:{postgres.port}"
            )
            await w.load(6000)
            async with w.writes(150):  # loaded
                await _started(w)
                await w.until_value("SELECT sum(applied) FROM crossfade.partition_progress", 1000)
                await _stopped(w)
            await _started(w)
            await w.settled()
            await _stopped(w)  # idle
            connection = await w.connect()
            rows = await connection.fetch(
                "SELECT topic, partition, next_offset FROM crossfade.partition_progress"
            )
            stored = {(row[0], row[1]): row[2] for row in rows}
            assert await committed(w) == stored
            # Publish's last heartbeat may come after apply's end.
            behind = {place: end - stored[place] for place, end in (await ends(w)).items()}
            assert set(behind.values()) <= {0, 1}, behind

            await _started(w)
            await w.settled()
            async with connection.transaction():  # locked
                await connection.execute("LOCK TABLE pages, crossfade.checkpoint IN ACCESS EXCLUSIVE MODE")
                await _insert(w, "locked")
                waiting = (
                    "SELECT count(DISTINCT application_name) FROM pg_stat_activity "
                    "WHERE wait_event_type = 'Lock' "
                    "AND application_name IN ('crossfade apply', 'crossfade publish')"
                )
                await w.until_value(waiting, 2)
                await _stopped(w)
            await connection.close()

            await _started(w)
            await w.settled()
            if LONG:
                postgres.open.clear()  # silent
                await _insert(w, "silent")
                await asyncio.sleep(1)
                await _stopped(w)
                postgres.open.set()
                await _started(w)
                await w.settled()
            before = {role: len(log(w, role)) for role in ROLES}
            postgres.refuses = True  # away
            postgres.cut()
            await _insert(w, "away")
            # What publish was asking in that moment is cut, or it finds nobody: it tells the first of both.
            for role, away in {"publish": "PostgreSQL is away", "apply": "cannot be reached"}.items():
                await w.until(f"{role} told", lambda r=role, a=away: a in log(w, r)[before[r] :])
            await _stopped(w)
            postgres.refuses = False

            await _started(w)
            await w.settled()
            await w.assert_nothing_lost()
            await _stopped(w)

"""Two publishers of one name: one leads, the other takes over."""

from __future__ import annotations

from pathlib import Path

import asyncpg

from tests.support.world import World, world
from worker.embedded import Services

_LEADERS = """
SELECT pid FROM pg_stat_activity WHERE application_name = 'crossfade leader' AND datname = current_database()
"""


def _told(w: World, name: str, event: str) -> bool:
    return event in (w.directory / f"{name}.log").read_text()


async def test_a_standby_takes_over_when_the_leader_dies(services: Services, tmp_path: Path) -> None:
    async with world(services, tmp_path) as w:
        await w.load(400)
        await w.start("publish", "first", CROSSFADE_COPY_CHUNK="20")
        await w.start("apply", "apply")
        async with w.writes(80):
            await w.until_value("SELECT count(*) FROM crossfade.document", 50)
            await w.start("publish", "second")
            await w.until("second stands by", lambda: _told(w, "second", "standing by"))
            assert not _told(w, "second", '"publishing"')
            await w.kill("first")
            await w.until("second leads", lambda: _told(w, "second", "leading from now on"), 20)
            await w.settled()
        await w.settled()
        await w.assert_nothing_lost()
        assert await w.stop("second") == 0


async def test_a_standby_stops_when_told(services: Services, tmp_path: Path) -> None:
    async with world(services, tmp_path) as w:
        await w.load(150)
        await w.start("publish", "first")
        await w.until("first leads", lambda: _told(w, "first", '"publishing"'))
        await w.start("publish", "second")
        await w.until("second stands by", lambda: _told(w, "second", "standing by"))
        assert await w.stop("second") == 0


async def test_a_leader_whose_lock_is_lost_takes_it_again(services: Services, tmp_path: Path) -> None:
    async with world(services, tmp_path) as w:
        await w.load(150)
        await w.start("publish", "publish")
        await w.start("apply", "apply")
        await w.settled()
        connection: asyncpg.Connection = await w.connect()
        (before,) = await connection.fetch(_LEADERS)
        await connection.fetchval("SELECT pg_terminate_backend($1)", before["pid"])
        await w.until("it is told", lambda: _told(w, "publish", "taking it again"))
        await w.until_value(f"SELECT count(*) FROM ({_LEADERS}) l WHERE pid <> {before['pid']}", 1)
        await connection.close()
        await w.settled()
        await w.assert_nothing_lost()

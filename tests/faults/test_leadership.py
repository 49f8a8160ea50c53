"""Two publishers of one name: one leads, the other takes over."""

from __future__ import annotations

import re
import signal
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest

from tests.support.proxy import Proxy, See, proxy
from tests.support.world import World, world
from worker.embedded import Services

_LEADER = """
SELECT pid FROM pg_stat_activity WHERE application_name = 'crossfade leader' AND datname = current_database()
    AND pid IN (SELECT pid FROM pg_locks WHERE locktype = 'advisory' AND granted)
"""

TAKEN_OVER_WITHIN = 30  # seconds; 11 and what a busy machine takes
_SUPERSEDED = "SELECT sum(superseded) FROM crossfade.partition_progress"


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
            await w.start("publish", "third")
            await w.until("third stands by", lambda: _told(w, "third", "standing by"))
            assert await w.stop("third") == 0
            await w.kill("first")
            await w.until("second leads", lambda: _told(w, "second", "leading from now on"), 20)
            await w.settled()
        await w.settled()
        await w.assert_nothing_lost()
        assert await w.stop("second") == 0


@asynccontextmanager
async def _own_way_to_postgres(w: World) -> AsyncIterator[tuple[Proxy, str]]:
    """Return a proxy to PostgreSQL and the connection string that goes through it."""
    dsn = w.env["CROSSFADE_POSTGRES_DSN"]
    host = re.search(r"127\.0\.0\.1:(\d+)", dsn)
    assert host is not None
    async with proxy(int(host[1])) as way:
        yield way, dsn.replace(host[0], f"127.0.0.1:{way.port}")


async def _end_its_session(w: World) -> None:
    await w.value("SELECT pg_terminate_backend($1)", await w.value(_LEADER))


@pytest.mark.timeout(400)
async def test_whatever_becomes_of_the_leader_another_one_leads_and_two_at_once_do_no_harm(
    services: Services, tmp_path: Path
) -> None:
    async with world(services, tmp_path) as w, _own_way_to_postgres(w) as (way, dsn):
        await w.load(2500, tenants=3)
        await w.start("publish", "first", CROSSFADE_COPY_RATE="150", CROSSFADE_POSTGRES_DSN=dsn)
        await w.start("apply", "apply")
        async with w.writes(60):
            # An administrator ends its session, and nobody else is there.
            await w.until_value("SELECT sum(copied) FROM crossfade.collection", 100)
            await _end_its_session(w)
            await w.until("first leads again", lambda: _told(w, "first", "leading again"))

            # Its network to PostgreSQL goes silent in the midst of the copy: it knows nothing of it.
            await w.start("publish", "second")
            await w.until("second stands by", lambda: _told(w, "second", "standing by"))
            assert await w.value("SELECT count(*) FROM crossfade.collection WHERE copy_state = 'copying'")
            way.open.clear()
            await w.until("second leads", lambda: _told(w, "second", "leading from"), TAKEN_OVER_WITHIN)
            twice = await w.value(_SUPERSEDED) or 0
            await w.until_value(_SUPERSEDED, twice + 200)  # both send every change
            way.open.set()
            assert await w.ended("first") == 1

            # It is frozen for longer than PostgreSQL waits, and comes back.
            await w.start("publish", "third")
            await w.until("third stands by", lambda: _told(w, "third", "standing by"))
            frozen = w.processes["second"]
            frozen.send_signal(signal.SIGSTOP)
            await w.until("third leads", lambda: _told(w, "third", "leading from"), TAKEN_OVER_WITHIN)
            frozen.send_signal(signal.SIGCONT)
            assert await w.ended("second") == 1

            # An administrator ends its session: it takes the lock again, or the other one is faster.
            await w.start("publish", "fourth")
            await w.until("fourth stands by", lambda: _told(w, "fourth", "standing by"))
            await _end_its_session(w)
            await w.settled()

            # PostgreSQL is away for a while, and all die that have ever led.
            await w.start("publish", "fifth")
            await w.until("fifth stands by", lambda: _told(w, "fifth", "standing by"))
            await services.kill("postgres")
            await w.until("fifth meets it", lambda: _told(w, "fifth", "cannot ask for the lock"))
            await w.kill("third")
            await w.kill("fourth")
            await services.start("postgres")
            await w.until("fifth leads", lambda: _told(w, "fifth", "leading from"), TAKEN_OVER_WITHIN)
            await w.settled()
        await w.settled()
        await w.assert_nothing_lost()
        names = ("first", "second", "third", "fourth", "fifth", "apply")
        assert not [name for name in names if _told(w, name, "Traceback")]


async def test_a_connection_lost_while_asking_for_the_lock_at_the_start_is_no_matter_for_a_person(
    services: Services, tmp_path: Path
) -> None:
    cut = 0

    def watch() -> See:
        def see(piece: bytes, from_client: bool) -> bool:
            nonlocal cut
            if cut < 2 and from_client and b"pg_try_advisory_xact_lock" in piece:
                cut += 1
                return True
            return False

        return see

    async with world(services, tmp_path) as w, _own_way_to_postgres(w) as (way, dsn):
        await w.load(400)
        way.watch = watch
        await w.start("publish", "publish", CROSSFADE_POSTGRES_DSN=dsn)
        await w.until("it leads", lambda: _told(w, "publish", '"publishing"'))
        assert cut == 2
        assert (tmp_path / "publish.log").read_text().count("cannot ask for the lock, trying again") == 2
        assert await w.stop("publish") == 0

"""A transaction pooler (PgBouncer) between Crossfade and PostgreSQL, shared with other clients."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import asyncpg

from tests.support.pooler import pooler
from tests.support.world import World, once, world
from worker.embedded import Services

POOL_SIZE = 4
# What PgBouncer itself sets, to what each client asked for.
_TRACKED = "'application_name', 'client_encoding', 'DateStyle', 'IntervalStyle', 'TimeZone'"
_LEAKED = f"""
SELECT name FROM pg_settings
WHERE source = 'session' AND setting IS DISTINCT FROM reset_val AND name NOT IN ({_TRACKED})
UNION ALL SELECT name FROM pg_prepared_statements WHERE name <> ''
UNION ALL SELECT 'crossfade.tenants' WHERE nullif(current_setting('crossfade.tenants', true), '') IS NOT NULL
"""


class _Neighbours:
    """Clients of the same sessions, and of the application, that look around and write all the time."""

    def __init__(self) -> None:
        self.looks, self.writes, self.leaked, self.sessions = 0, 0, set[str](), set[int]()

    async def look(self, dsn: str) -> None:
        connection = await asyncpg.connect(dsn, statement_cache_size=0)
        try:
            while True:
                async with connection.transaction():
                    self.sessions.add(await connection.fetchval("SELECT pg_backend_pid()"))
                    self.leaked |= {row[0] for row in await connection.fetch(_LEAKED)}
                self.looks += 1
                await asyncio.sleep(0.005)
        finally:
            connection.terminate()

    async def use(self, dsn: str) -> None:
        connection = await asyncpg.connect(dsn, statement_cache_size=0)
        try:
            while True:
                async with connection.transaction():
                    await connection.execute("SET LOCAL app.current_tenant_id = '%s'" % ("0" * 32))
                    assert await connection.fetchval("SELECT count(*) FROM leads") == 0
                self.writes += 1
                await asyncio.sleep(0.01)
        finally:
            connection.terminate()


@asynccontextmanager
async def _neighbours(w: World) -> AsyncIterator[_Neighbours]:
    them = _Neighbours()
    application = w.env["CROSSFADE_POSTGRES_DSN"].replace("crossfade_sync", "application_role")
    tasks = [asyncio.create_task(them.look(w.env["CROSSFADE_POSTGRES_DSN"])) for _ in range(2)]
    tasks += [asyncio.create_task(them.use(application)) for _ in range(6)]
    try:
        yield them
        for task in tasks:
            assert not task.done(), task.exception()
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


async def test_through_a_transaction_pooler_all_arrives_and_nothing_leaks_to_other_clients(
    services: Services, tmp_path: Path
) -> None:
    async with world(services, tmp_path) as w, pooler(w, POOL_SIZE) as port:
        for role in ("CROSSFADE_POSTGRES_DSN", "CROSSFADE_POSTGRES_READER_DSN"):
            user = w.env[role].partition("//")[2].partition("@")[0]
            w.env[role] = f"postgresql://{user}@127.0.0.1:{port}/{w.name}"
        await w.load(1500, tenants=4)
        async with _neighbours(w) as them:
            await w.start("publish", "publish")
            await w.start("apply", "apply")
            async with w.writes(80) as writer:
                await w.until_value("SELECT sum(applied) FROM crossfade.partition_progress", 300)
                await w.start("publish", "standby")
                await w.start("apply", "apply two")
                for _ in range(2):
                    await w.kill("apply")
                    changes = writer.counters.changes
                    await w.start("apply", "apply")
                    await w.until("writes go on", lambda n=changes: writer.counters.changes > n + 150)
                await w.until("a standby", lambda: "standing by" in _log(w, "standby"))
                await w.kill("publish")
                await w.until("it takes over", lambda: "leading from now on" in _log(w, "standby"))
            await w.settled()
            await w.assert_nothing_lost()
            code, told = await once(w, "status")
            assert code == 0, told
            control = w.env["CROSSFADE_POSTGRES_DSN"].replace("crossfade_sync", "crossfade_control")
            code, told = await once(w, "tenants", CROSSFADE_POSTGRES_CONTROL_DSN=control)
            assert code == 2 and "CROSSFADE_POSTGRES_CONTROL_DSN leads to a transaction pooler" in told, told
            code, told = await once(w, "check", "--integrity")  # temporary tables and all
            assert code in (0, 1) and "unknown" not in told, told  # the application may leave orphans
            assert await w.stop("apply") == 0 and await w.stop("apply two") == 0
            assert await w.stop("standby") == 0
        assert them.looks > 500 and them.writes > 50 and len(them.sessions) >= 2
        assert them.leaked == set()
        for name in ("publish", "standby", "apply", "apply two"):
            assert "Traceback" not in _log(w, name)


def _log(w: World, name: str) -> str:
    return (w.directory / f"{name}.log").read_text()

"""The role that docker-compose.yml makes before `crossfade schema apply` is the one that it needs."""

from __future__ import annotations

from pathlib import Path
from uuid import uuid4

import asyncpg

from schema import migrate
from worker.embedded import Services

ROLES = Path(__file__).parents[2] / "deploy/postgres/roles.sql"


async def test_the_schema_keeps_the_sync_role_and_its_password(services: Services) -> None:
    admin = await asyncpg.connect(services.postgres_admin_dsn)
    name = f"compose_{uuid4().hex[:8]}"
    await admin.execute(f"CREATE DATABASE {name}")
    fresh = await asyncpg.connect(services.dsn("postgres", name))
    try:
        for _ in range(2):  # the role may be there: it belongs to the cluster
            await fresh.execute(ROLES.read_text())
        before = await _role(admin)
        await migrate.apply(fresh, "control")
        await migrate.apply(fresh, "spaces")
        assert await _role(admin) == before
        assert str(before["rolpassword"]).startswith("SCRAM-SHA-256$")
        assert (before["rolcanlogin"], before["rolsuper"], before["rolbypassrls"]) == (True, False, False)
        sync = await asyncpg.connect(services.dsn("crossfade_sync", name))
        assert await sync.fetchval("SELECT count(*) FROM crossfade.batch") == 0
        await sync.close()
    finally:
        await fresh.close()
        await admin.execute("ALTER ROLE crossfade_sync PASSWORD NULL")
        await admin.execute(f"DROP DATABASE {name}")
        await admin.close()


async def _role(connection: asyncpg.Connection) -> asyncpg.Record:
    row = await connection.fetchrow("SELECT * FROM pg_authid WHERE rolname = 'crossfade_sync'")
    assert row is not None
    return row

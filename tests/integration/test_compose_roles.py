"""The roles that docker-compose.yml makes before `crossfade schema apply` are those that it needs."""

from __future__ import annotations

from pathlib import Path
from uuid import uuid4

import asyncpg
import pytest

from schema import migrate
from worker.embedded import Services

ROLES = Path(__file__).parents[2] / "deploy/postgres/roles.sql"


@pytest.mark.parametrize("role", ["crossfade_sync", "crossfade_reader", "crossfade_control"])
async def test_the_schema_keeps_a_role_and_its_password(services: Services, role: str) -> None:
    admin = await asyncpg.connect(services.postgres_admin_dsn)
    name = f"compose_{uuid4().hex[:8]}"
    await admin.execute(f"CREATE DATABASE {name}")
    fresh = await asyncpg.connect(services.dsn("postgres", name))
    try:
        for _ in range(2):  # the role may be there: it belongs to the cluster
            await fresh.execute(ROLES.read_text())
        before = await _role(admin, role)
        await migrate.apply(fresh, "control")
        await migrate.apply(fresh, "spaces")
        assert await _role(admin, role) == before
        assert str(before["rolpassword"]).startswith("SCRAM-SHA-256$")
        assert (before["rolcanlogin"], before["rolsuper"], before["rolbypassrls"]) == (True, False, False)
        there = await asyncpg.connect(services.dsn(role, name))
        assert await there.fetchval("SELECT count(*) FROM crossfade.batch") == 0
        await there.close()
    finally:
        await fresh.close()
        for one in ("crossfade_sync", "crossfade_reader", "crossfade_control"):
            await admin.execute(f"ALTER ROLE {one} PASSWORD NULL")
        await admin.execute(f"DROP DATABASE {name}")
        await admin.close()


async def _role(connection: asyncpg.Connection, name: str) -> asyncpg.Record:
    row = await connection.fetchrow("SELECT * FROM pg_authid WHERE rolname = $1", name)
    assert row is not None
    return row

"""A database with rows that are right, for tests to plant what is wrong, and the integrity checks of it."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any
from uuid import UUID

import asyncpg
from pydantic import SecretStr

from tests.support.schema_database import Database
from tests.support.tenant_rows import Tenant, insert
from worker.integrity import run_integrity
from worker.postgres import integrity
from worker.prechecks import Check
from worker.settings import Settings

SPACES = Path(__file__).parents[2] / "schema/spaces/mapping.yaml"
TABLES = ("tenants", "users", "user_passwords", "pages", "form_configs", "leads", "lead_activities")


@asynccontextmanager
async def planting(database: Database, *tenants: Tenant) -> AsyncIterator[asyncpg.Connection]:
    """A superuser's connection that checks no reference, in a database with these tenants' rows."""
    async with database.connect() as connection:
        await connection.execute("SET session_replication_role = replica")
        for tenant in tenants:
            for table in TABLES:
                await insert(connection, table, tenant.row(table))
        yield connection


async def checked(
    database: Database,
    *,
    role: str = "crossfade_reader",
    mapping: Path = SPACES,
    tenant: UUID | None = None,
    limit: int = 20,
    seconds: float = 30,
    progress: list[str] | None = None,
    **other: Any,
) -> dict[str, Check]:
    given: dict[str, Any] = {
        "mongo_uri": SecretStr(database.services.mongo_uri),
        "postgres_dsn": SecretStr(database.services.dsn("crossfade_sync", database.name)),
        "postgres_reader_dsn": SecretStr(database.services.dsn(role, database.name)),
        "kafka_bootstrap": "",
        "mapping": mapping,
    }
    settings = Settings(**given | other)
    told: list[str] = [] if progress is None else progress
    made = await run_integrity(settings, tenant=tenant, limit=limit, seconds=seconds, progress=told.append)
    assert [one.name for one in made] == ["mapping", *integrity.CHECKS]
    return {one.name: one for one in made}


def untrue(checks: dict[str, Check]) -> dict[str, bool | None]:
    return {name: one.ok for name, one in checks.items() if one.ok is not True}


def only(check: Check) -> dict[str, Any]:
    [finding] = check.findings
    return finding

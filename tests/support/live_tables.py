"""Live tables that are changed for one look, and mappings of one column."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import asyncpg

from tests.support.schema_database import Database
from worker.mapping import Mapping, load
from worker.postgres.connect import use_raw_json
from worker.postgres.tables import table_faults

SPACES = load(Path(__file__).parents[2] / "schema/spaces/mapping.yaml")
SYNC = "crossfade_sync"


@asynccontextmanager
async def changed(database: Database, ddl: str, role: str = SYNC) -> AsyncIterator[asyncpg.Connection]:
    """The sync role's connection after some DDL, all of which is undone at the end."""
    async with database.connect() as connection:
        await use_raw_json(connection)
        transaction = connection.transaction()
        await transaction.start()
        try:
            await connection.execute(ddl)
            await connection.execute(f"SET LOCAL ROLE {role}")
            yield connection
        finally:
            await transaction.rollback()


async def faults(database: Database, ddl: str, mapping: Mapping = SPACES, role: str = SYNC) -> list[str]:
    async with changed(database, ddl, role) as connection:
        return [str(fault) for fault in await table_faults(connection, mapping)]


def of_one_column(type_: str, **more: Any) -> Mapping:
    return Mapping.model_validate(
        {
            "version": 1,
            "database": "d",
            "collections": {
                "things": {
                    "table": "things",
                    "tenant": None,
                    "rest": "rest",
                    "columns": {"x": {"type": type_, **more}},
                }
            },
        }
    )


def things(live: str) -> str:
    return (
        "CREATE EXTENSION citext; CREATE TYPE color AS ENUM ('red', 'green', 'blue'); "
        "CREATE DOMAIN note AS text; CREATE DOMAIN brief AS varchar(3); "
        f"CREATE TABLE things (id uuid PRIMARY KEY, x {live}, rest jsonb); GRANT ALL ON things TO {SYNC}"
    )

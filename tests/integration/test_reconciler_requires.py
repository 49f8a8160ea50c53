"""What the reconciler asks of PostgreSQL before it reads: who must act, where it is not so."""

from __future__ import annotations

import asyncpg
import pytest

from tests.support.proxy import proxy
from tests.support.schema_database import SPACES_TABLES, Database
from worker.errors import SchemaError, Transient
from worker.postgres import reconciliation

pytest_plugins = ["tests.support.schema_fixtures"]


async def test_a_postgresql_that_goes_away_in_this_moment_is_no_work_for_a_person(
    spaces_database: Database,
) -> None:
    dsn = spaces_database.services.dsn("crossfade_reader", spaces_database.name)
    place, _, name = dsn.rpartition("/")
    async with proxy(int(place.rpartition(":")[2])) as way, spaces_database.connect() as store:
        way.watch = lambda: lambda piece, by_client: by_client and b"relrowsecurity" in piece
        through = f"{place.rpartition(':')[0]}:{way.port}/{name}"
        reader = await asyncpg.connect(through)
        with pytest.raises(Transient, match="ConnectionDoesNotExistError"):
            await reconciliation.require(store, reader, SPACES_TABLES)


async def test_a_database_without_the_schema_is(empty_database: Database) -> None:
    async with empty_database.connect() as store, empty_database.connect() as reader:
        with pytest.raises(SchemaError, match="too old"):
            await reconciliation.require(store, reader, SPACES_TABLES)

"""Applying a target's SQL files: once, in order, whole or not at all."""

from __future__ import annotations

import asyncio
import traceback
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path
from typing import Any
from uuid import uuid4

import asyncpg
import pytest
import pytest_asyncio

from schema import migrate
from schema.migrate import MigrationFailed, SchemaDrift, State, UnknownMigration
from schema.targets import read_target
from tests.support.schema_database import Database, on_the_cluster

pytest_plugins = ["tests.support.schema_fixtures"]


@pytest.fixture
def shop(tmp_path: Path) -> Path:
    """A user's own target of two files."""
    directory = tmp_path / "shop"
    directory.mkdir()
    (directory / "001_goods.sql").write_text("CREATE TABLE goods (name text);\n")
    (directory / "002_orders.sql").write_text("CREATE TABLE orders (number integer);\n")
    return directory


@pytest_asyncio.fixture
async def connection(empty_database: Database) -> AsyncIterator[asyncpg.Connection]:
    async with empty_database.connect() as opened:
        yield opened


async def exists(connection: asyncpg.Connection, table: str) -> bool:
    return await connection.fetchval("SELECT to_regclass($1) IS NOT NULL", table)


async def until(probe: Callable[[], Awaitable[Any]]) -> Any:
    for _ in range(1000):
        if found := await probe():
            return found
        await asyncio.sleep(0.01)
    raise TimeoutError


async def states(connection: asyncpg.Connection, target: Path | str) -> list[State]:
    return [each.state for each in await migrate.status(connection, target)]


@pytest.mark.parametrize("target", ["control", "spaces"])
async def test_applying_again_changes_nothing(spaces_database: Database, target: str) -> None:
    async with spaces_database.connect() as connection:
        before = await migrate.status(connection, target)
        assert await migrate.apply(connection, target) == []
        assert await migrate.status(connection, target) == before
        assert [each.state for each in before] == [State.APPLIED] * len(read_target(target).migrations)


async def test_own_target_is_applied_in_order_and_reported(
    connection: asyncpg.Connection, shop: Path
) -> None:
    reported: list[str] = []
    applied = await migrate.apply(connection, shop, report=lambda each: reported.append(each.file))
    assert reported == [each.file for each in applied] == ["shop/001_goods.sql", "shop/002_orders.sql"]
    assert await exists(connection, "goods")
    assert await exists(connection, "orders")


async def test_status_of_an_untouched_database_changes_nothing(
    connection: asyncpg.Connection, shop: Path
) -> None:
    assert await states(connection, shop) == [State.PENDING, State.PENDING]
    assert not await exists(connection, "crossfade.schema_version")


async def test_changed_file_is_refused_by_name_and_nothing_runs(
    connection: asyncpg.Connection, shop: Path
) -> None:
    await migrate.apply(connection, shop)
    (shop / "001_goods.sql").write_text("CREATE TABLE goods (name text, price numeric);\n")
    (shop / "003_later.sql").write_text("CREATE TABLE later ();\n")
    with pytest.raises(SchemaDrift, match=r"shop/001_goods\.sql"):
        await migrate.apply(connection, shop)
    assert not await exists(connection, "later")
    assert await states(connection, shop) == [State.DRIFTED, State.APPLIED, State.PENDING]


async def test_database_newer_than_the_files_is_refused(connection: asyncpg.Connection, shop: Path) -> None:
    await migrate.apply(connection, shop)
    (shop / "002_orders.sql").unlink()
    with pytest.raises(UnknownMigration, match="002"):
        await migrate.apply(connection, shop)
    assert await states(connection, shop) == [State.APPLIED, State.UNKNOWN]


async def test_gap_in_the_database_is_refused(connection: asyncpg.Connection, shop: Path) -> None:
    await migrate.apply(connection, shop)
    await connection.execute("DELETE FROM crossfade.schema_version WHERE number = 1")
    with pytest.raises(UnknownMigration, match="lacks migration 001"):
        await migrate.apply(connection, shop)


async def test_failing_file_rolls_back_whole_and_the_next_run_continues(
    connection: asyncpg.Connection, shop: Path
) -> None:
    (shop / "002_orders.sql").write_text("CREATE TABLE orders (number integer);\n\nCREATE TABLE goods ();\n")
    (shop / "003_later.sql").write_text("CREATE TABLE later ();\n")
    with pytest.raises(MigrationFailed, match=r"shop/002_orders\.sql") as failure:
        await migrate.apply(connection, shop)
    assert failure.value.sqlstate == "42P07"
    assert await exists(connection, "goods")
    assert not await exists(connection, "orders")
    assert await states(connection, shop) == [State.APPLIED, State.PENDING, State.PENDING]

    (shop / "002_orders.sql").write_text("CREATE TABLE orders (number integer);\n")
    assert [each.number for each in await migrate.apply(connection, shop)] == [2, 3]
    assert await exists(connection, "orders")
    assert await exists(connection, "later")


async def test_syntax_error_is_told_with_its_line(connection: asyncpg.Connection, shop: Path) -> None:
    (shop / "002_orders.sql").write_text(
        "CREATE TABLE orders (\n    number integer,\n    oops oops oops\n);\n"
    )
    with pytest.raises(MigrationFailed, match=r"shop/002_orders\.sql:3: .*42601"):
        await migrate.apply(connection, shop)


async def test_failure_tells_no_row_value(connection: asyncpg.Connection, shop: Path) -> None:
    await migrate.apply(connection, shop)
    await connection.execute("INSERT INTO goods VALUES ('a secret'), ('a secret')")
    (shop / "003_unique.sql").write_text("CREATE UNIQUE INDEX one_name ON goods (name);\n")
    with pytest.raises(MigrationFailed, match="one_name") as failure:
        await migrate.apply(connection, shop)
    assert "a secret" not in "".join(traceback.format_exception(failure.value))


async def test_second_applier_waits_and_does_nothing(empty_database: Database, shop: Path) -> None:
    both_wait = (
        "SELECT count(*) = 2 FROM pg_locks JOIN pg_database ON pg_database.oid = database "
        "WHERE datname = current_database() AND locktype = 'advisory' AND NOT granted"
    )
    async with (
        empty_database.connect() as holder,
        empty_database.connect() as first,
        empty_database.connect() as second,
    ):
        await holder.execute("SELECT pg_advisory_lock($1)", migrate.ADVISORY_LOCK)
        appliers = [asyncio.create_task(migrate.apply(each, shop)) for each in (first, second)]
        await until(lambda: holder.fetchval(both_wait))
        assert not await exists(holder, "goods")
        await holder.execute("SELECT pg_advisory_unlock($1)", migrate.ADVISORY_LOCK)
        done = await asyncio.gather(*appliers)
        assert sorted(len(each) for each in done) == [0, 2]


async def test_killed_applier_leaves_no_lock_and_nothing_half_done(
    empty_database: Database, connection: asyncpg.Connection, shop: Path
) -> None:
    sleeping = (
        "SELECT pid FROM pg_stat_activity WHERE wait_event = 'PgSleep' AND datname = current_database()"
    )
    good = (shop / "002_orders.sql").read_text()
    (shop / "002_orders.sql").write_text(good + "SELECT pg_sleep(60);\n")
    async with empty_database.connect() as victim:
        killed = asyncio.create_task(migrate.apply(victim, shop))
        pid = await until(lambda: connection.fetchval(sleeping))
        await connection.execute("SELECT pg_terminate_backend($1)", pid)
        with pytest.raises((asyncpg.InterfaceError, asyncpg.PostgresConnectionError)):
            await killed
    (shop / "002_orders.sql").write_text(good)
    assert [each.number for each in await migrate.apply(connection, shop)] == [2]


async def test_lock_is_free_after_a_failure(
    empty_database: Database, connection: asyncpg.Connection, shop: Path
) -> None:
    (shop / "002_orders.sql").write_text("SELECT 1 / 0;\n")
    with pytest.raises(MigrationFailed):
        await migrate.apply(connection, shop)
    async with empty_database.connect() as other:
        assert await other.fetchval("SELECT pg_try_advisory_lock($1)", migrate.ADVISORY_LOCK)


@pytest.mark.usefixtures("migrated_template")  # so that the roles exist
async def test_admin_who_is_no_superuser_can_apply_both_targets(empty_database: Database) -> None:
    """A managed service's admin: it may create roles, owns the database, and may not grant the parameter.

    The roles belong to the cluster and exist already, so it is granted what their creator has by nature.
    """
    services, name, admin = empty_database.services, empty_database.name, f"admin_{uuid4().hex[:8]}"
    parameter = "SET ON PARAMETER session_replication_role"
    await on_the_cluster(
        services,
        f"CREATE ROLE {admin} LOGIN CREATEROLE NOSUPERUSER",
        f"GRANT crossfade_owner, crossfade_lookup TO {admin} WITH ADMIN TRUE, INHERIT FALSE, SET FALSE",
        f"ALTER DATABASE {name} OWNER TO {admin}",
        f"REVOKE {parameter} FROM crossfade_sync",
    )
    try:
        async with empty_database.connect(admin) as connection:
            assert await migrate.apply(connection, "control")
            assert await migrate.apply(connection, "spaces")
            assert await states(connection, "spaces") == [State.APPLIED] * len(
                read_target("spaces").migrations
            )
            assert not await connection.fetchval(
                "SELECT has_parameter_privilege('crossfade_sync', 'session_replication_role', 'SET')"
            )
        async with empty_database.connect("application_role") as application:
            assert await application.fetchval("SELECT tenant_by_subdomain('nobody')") is None
    finally:
        await on_the_cluster(services, f"GRANT {parameter} TO crossfade_sync")
        async with empty_database.connect() as connection:
            await connection.execute(f"REASSIGN OWNED BY {admin} TO postgres; DROP OWNED BY {admin}")
        await on_the_cluster(services, f"DROP ROLE {admin}")

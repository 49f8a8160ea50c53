"""What each role can reach in every table of the target, with another tenant's rows beside."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import asyncpg
import pytest
import pytest_asyncio

from tests.support.schema_database import SPACES_TABLES, Database
from tests.support.tenant_rows import (
    Row,
    Tenant,
    become,
    change,
    declare,
    delete,
    insert,
    move,
    tenant_column,
    tenants_seen,
)

pytest_plugins = ["tests.support.schema_fixtures"]

every_table = pytest.mark.parametrize("table", SPACES_TABLES)
A, B = Tenant(), Tenant()


@asynccontextmanager
async def undone(database: Database, role: str) -> AsyncIterator[asyncpg.Connection]:
    """A connection in a transaction that is rolled back."""
    async with database.connect(role) as connection:
        transaction = connection.transaction()
        await transaction.start()
        yield connection
        await transaction.rollback()


@pytest_asyncio.fixture(scope="module", loop_scope="session")
async def database(shared_spaces_database: Database) -> Database:
    async with shared_spaces_database.connect() as admin:
        for table in SPACES_TABLES:  # parents come first
            for each in (A, B):
                await insert(admin, table, each.row(table))
    return shared_spaces_database


@pytest_asyncio.fixture
async def reader(database: Database) -> AsyncIterator[asyncpg.Connection]:
    async with database.connect("crossfade_reader") as connection:
        yield connection


@pytest_asyncio.fixture
async def application(database: Database) -> AsyncIterator[asyncpg.Connection]:
    """The application, without a tenant."""
    async with undone(database, "application_role") as connection:
        yield connection


@pytest_asyncio.fixture
async def as_a(application: asyncpg.Connection) -> asyncpg.Connection:
    await become(application, A)
    return application


@pytest_asyncio.fixture(params=["replica", "origin"])
async def sync(database: Database, request: pytest.FixtureRequest) -> AsyncIterator[asyncpg.Connection]:
    """The sync role with A declared, with the privilege of being a replica and without it."""
    async with undone(database, "crossfade_sync") as connection:
        await connection.execute(f"SET LOCAL session_replication_role = {request.param}")
        await declare(connection, A)
        yield connection


@every_table
class TestApplication:
    """Invariant 4: one tenant at a time, in every table."""

    async def test_reads_its_own_rows_only(self, as_a: asyncpg.Connection, table: str) -> None:
        assert await tenants_seen(as_a, table) == [A.id]

    async def test_writes_its_own_rows(self, as_a: asyncpg.Connection, table: str) -> None:
        assert await change(as_a, table, A) == "UPDATE 1"
        if table != "tenants":
            assert await insert(as_a, table, A.another_row(table)) == "INSERT 0 1"
        if table in ("user_passwords", "pages", "lead_activities"):
            assert (await delete(as_a, table, A)).startswith("DELETE")

    async def test_cannot_insert_for_another(self, as_a: asyncpg.Connection, table: str) -> None:
        with pytest.raises(asyncpg.InsufficientPrivilegeError, match="row-level security"):
            await insert(as_a, table, B.another_row(table))

    async def test_cannot_update_or_delete_another_s(self, as_a: asyncpg.Connection, table: str) -> None:
        assert await change(as_a, table, B) == "UPDATE 0"
        assert await delete(as_a, table, B) == "DELETE 0"
        await become(as_a, B)
        rests = await as_a.fetch(f"SELECT rest FROM {table}")
        assert [each["rest"] for each in rests] == [None]

    async def test_cannot_take_another_s_row_by_upsert(self, as_a: asyncpg.Connection, table: str) -> None:
        keys = "lead_id, position" if table == "lead_activities" else "id"
        taken = B.row(table) | {tenant_column(table): A.id} if table != "tenants" else B.row(table)
        with pytest.raises(asyncpg.InsufficientPrivilegeError, match="row-level security"):
            await insert(as_a, table, taken, f"ON CONFLICT ({keys}) DO UPDATE SET rest = '{{}}'")

    async def test_cannot_give_its_row_to_another(self, as_a: asyncpg.Connection, table: str) -> None:
        with pytest.raises(asyncpg.InsufficientPrivilegeError, match="row-level security"):
            await move(as_a, table, A, B.id)

    async def test_cannot_truncate(self, as_a: asyncpg.Connection, table: str) -> None:
        with pytest.raises(asyncpg.InsufficientPrivilegeError, match="permission denied"):
            await as_a.execute(f"TRUNCATE {table} CASCADE")

    @pytest.mark.parametrize("setting", [None, ""], ids=["never set", "empty"])
    async def test_without_tenant_sees_nothing_and_writes_nothing(
        self, application: asyncpg.Connection, table: str, setting: str | None
    ) -> None:
        if setting is not None:
            await application.execute("SELECT set_config('app.current_tenant_id', $1, true)", setting)
        assert await tenants_seen(application, table) == []
        assert await change(application, table, A) == "UPDATE 0"
        assert await delete(application, table, A) == "DELETE 0"
        with pytest.raises(asyncpg.InsufficientPrivilegeError, match="row-level security"):
            await insert(application, table, A.another_row(table))

    async def test_reads_by_index_with_the_setting_read_once(
        self, as_a: asyncpg.Connection, table: str
    ) -> None:
        await as_a.execute("SET LOCAL enable_seqscan = off")
        plan = "\n".join(row[0] for row in await as_a.fetch(f"EXPLAIN SELECT * FROM {table}"))
        assert f"Index Cond: ({tenant_column(table)} = (InitPlan 1).col1)" in plan


@pytest.mark.parametrize(
    ("table", "parent"), [("user_passwords", {"user_id": B.user}), ("lead_activities", {"lead_id": B.lead})]
)
async def test_child_cannot_be_put_under_another_tenant_s_parent(
    as_a: asyncpg.Connection, table: str, parent: Row
) -> None:
    with pytest.raises(asyncpg.InsufficientPrivilegeError, match="row-level security"):
        await insert(as_a, table, A.another_row(table) | parent)


async def test_login_finds_a_tenant_by_subdomain_and_nothing_else(application: asyncpg.Connection) -> None:
    find = "SELECT tenant_by_subdomain($1)"
    assert await application.fetchval(find, f"s-{B.id}") == B.id
    assert await application.fetchval(find, "nobody") is None
    assert await application.fetchval(find, None) is None
    assert await tenants_seen(application, "tenants") == []


@pytest.mark.parametrize("role", ["crossfade_sync", "crossfade_reader"])
async def test_login_look_up_is_the_application_s_alone(database: Database, role: str) -> None:
    async with database.connect(role) as connection:
        with pytest.raises(asyncpg.InsufficientPrivilegeError):
            await connection.fetchval("SELECT tenant_by_subdomain('nobody')")


@pytest.mark.parametrize(
    "role", ["crossfade_lookup", "crossfade_sync", "crossfade_reader", "crossfade_owner"]
)
async def test_application_cannot_become_another_role(application: asyncpg.Connection, role: str) -> None:
    with pytest.raises(asyncpg.InsufficientPrivilegeError):
        await application.execute(f"SET ROLE {role}")


async def test_application_cannot_switch_triggers_off(application: asyncpg.Connection) -> None:
    with pytest.raises(asyncpg.InsufficientPrivilegeError):
        await application.execute("SET session_replication_role = replica")


@every_table
class TestSync:
    """It reaches the tenants that its transaction declared, as replica too."""

    async def test_writes_declared_tenants(self, sync: asyncpg.Connection, table: str) -> None:
        await declare(sync, A, B)
        assert sorted(await tenants_seen(sync, table)) == sorted([A.id, B.id])
        for each in (A, B):
            assert await change(sync, table, each) == "UPDATE 1"
        if table != "tenants":
            assert await insert(sync, table, B.another_row(table)) == "INSERT 0 1"
        if table not in ("tenants", "users"):  # the one is its key, in the other the address is taken
            assert (await move(sync, table, A, B.id)).startswith("UPDATE")

    async def test_cannot_insert_for_an_undeclared_tenant(self, sync: asyncpg.Connection, table: str) -> None:
        with pytest.raises(asyncpg.InsufficientPrivilegeError, match="row-level security"):
            await insert(sync, table, B.another_row(table))

    async def test_cannot_reach_an_undeclared_tenant_s_rows(
        self, sync: asyncpg.Connection, table: str
    ) -> None:
        assert await tenants_seen(sync, table) == [A.id]
        assert await change(sync, table, B) == "UPDATE 0"
        assert await delete(sync, table, B) == "DELETE 0"
        await declare(sync, B)
        rests = await sync.fetch(f"SELECT rest FROM {table}")
        assert [each["rest"] for each in rests] == [None]

    async def test_cannot_move_a_row_to_an_undeclared_tenant(
        self, sync: asyncpg.Connection, table: str
    ) -> None:
        with pytest.raises(asyncpg.InsufficientPrivilegeError, match="row-level security"):
            await move(sync, table, A, B.id)

    async def test_without_declaration_sees_nothing_and_writes_nothing(
        self, sync: asyncpg.Connection, table: str
    ) -> None:
        await declare(sync)
        assert await tenants_seen(sync, table) == []
        assert await change(sync, table, A) == "UPDATE 0"
        with pytest.raises(asyncpg.InsufficientPrivilegeError, match="row-level security"):
            await insert(sync, table, A.another_row(table))

    async def test_reads_by_index_with_the_declaration_read_once(
        self, sync: asyncpg.Connection, table: str
    ) -> None:
        await sync.execute("SET LOCAL enable_seqscan = off")
        plan = "\n".join(row[0] for row in await sync.fetch(f"EXPLAIN SELECT * FROM {table}"))
        assert f"Index Cond: ({tenant_column(table)} = ANY ((InitPlan 1).col1))" in plan


@every_table
async def test_reader_sees_all_and_writes_nothing(reader: asyncpg.Connection, table: str) -> None:
    assert sorted(await tenants_seen(reader, table)) == sorted([A.id, B.id])
    for write in (
        insert(reader, table, A.another_row(table)),
        change(reader, table, A),
        delete(reader, table, A),
    ):
        with pytest.raises(asyncpg.InsufficientPrivilegeError):
            await write

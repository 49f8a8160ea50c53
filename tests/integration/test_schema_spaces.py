"""The schema of the reference application, as the catalogue shows it and as its triggers behave."""

from __future__ import annotations

from collections.abc import AsyncIterator
from uuid import UUID, uuid4

import asyncpg
import pytest
import pytest_asyncio

from tests.support.schema_database import SPACES_TABLES, Database

pytest_plugins = ["tests.support.schema_fixtures"]


@pytest_asyncio.fixture
async def spaces(spaces_database: Database) -> AsyncIterator[asyncpg.Connection]:
    async with spaces_database.connect() as opened:
        yield opened


async def test_every_public_table_has_forced_row_level_security(spaces: asyncpg.Connection) -> None:
    tables = await spaces.fetch(
        "SELECT relname, relrowsecurity AND relforcerowsecurity AS forced FROM pg_class "
        "WHERE relnamespace = 'public'::regnamespace AND relkind IN ('r', 'p')"
    )
    assert {each["relname"]: each["forced"] for each in tables} == dict.fromkeys(SPACES_TABLES, True)


async def test_every_table_has_a_policy_for_each_role(spaces: asyncpg.Connection) -> None:
    rows = await spaces.fetch(
        "SELECT tablename, roles::text[], cmd FROM pg_policies WHERE schemaname = 'public'"
    )
    commands = {(each["tablename"], role): each["cmd"] for each in rows for role in each["roles"]}
    assert ("tenants", "crossfade_lookup") in commands
    del commands["tenants", "crossfade_lookup"]
    assert commands == {
        (table, role): command
        for table in SPACES_TABLES
        for role, command in {
            "application_role": "ALL",
            "crossfade_sync": "ALL",
            "crossfade_reader": "SELECT",
        }.items()
    }


async def test_every_id_has_a_default(spaces: asyncpg.Connection) -> None:
    defaults = await spaces.fetch(
        "SELECT table_name, column_default FROM information_schema.columns "
        "WHERE table_schema = 'public' AND column_name = 'id'"
    )
    assert {each["table_name"] for each in defaults} == set(SPACES_TABLES) - {"lead_activities"}
    assert {each["column_default"] for each in defaults} == {"gen_random_uuid()"}


async def test_every_table_has_an_index_that_begins_with_its_tenant(spaces: asyncpg.Connection) -> None:
    indexed = await spaces.fetch(
        "SELECT DISTINCT indrelid::regclass::text AS name FROM pg_index JOIN pg_attribute "
        "ON attrelid = indrelid AND attnum = indkey[0] "
        "WHERE attname = CASE indrelid::regclass::text WHEN 'tenants' THEN 'id' ELSE 'tenant_id' END"
    )
    assert {each["name"] for each in indexed} >= set(SPACES_TABLES)


async def test_required_indexes_exist(spaces: asyncpg.Connection) -> None:
    rows = await spaces.fetch("SELECT indexdef FROM pg_indexes WHERE schemaname = 'public'")
    found = {each["indexdef"].split(" ON public.", 1)[1] for each in rows}
    assert found >= {
        "users USING btree (email)",
        "users USING btree (role)",
        "users USING gin (profile)",
        "user_passwords USING btree (user_id)",
        "pages USING btree (tenant_id, slug)",
        "leads USING btree (email)",
        "leads USING btree (status)",
        "leads USING gin (search_vector)",
        'lead_activities USING btree (lead_id, "position")',
    }


async def test_unique_constraints(spaces: asyncpg.Connection) -> None:
    rows = await spaces.fetch(
        "SELECT conname, pg_get_constraintdef(oid) AS def FROM pg_constraint "
        "WHERE connamespace = 'public'::regnamespace AND contype = 'u'"
    )
    assert {each["conname"]: each["def"] for each in rows} == {
        "unique_email_per_tenant": "UNIQUE (tenant_id, email) DEFERRABLE",
        "unique_subdomain": "UNIQUE (subdomain) DEFERRABLE",
    }


async def test_no_foreign_key_cascades_or_waits(spaces: asyncpg.Connection) -> None:
    rows = await spaces.fetch(
        "SELECT conrelid::regclass::text AS name, confdeltype, confupdtype, condeferrable, condeferred "
        "FROM pg_constraint WHERE connamespace = 'public'::regnamespace AND contype = 'f'"
    )
    assert {each["name"] for each in rows} == set(SPACES_TABLES) - {"tenants"}
    assert all((each["confdeltype"], each["confupdtype"]) == (b"a", b"a") for each in rows)
    assert all(each["condeferrable"] and not each["condeferred"] for each in rows)


async def test_no_role_of_ours_passes_the_walls(spaces: asyncpg.Connection) -> None:
    roles = await spaces.fetch(
        "SELECT rolname, rolsuper OR rolbypassrls OR rolcreaterole OR rolcreatedb AS mighty, rolcanlogin "
        "FROM pg_roles WHERE rolname LIKE 'crossfade%' OR rolname = 'application_role'"
    )
    assert not any(each["mighty"] for each in roles)
    assert {each["rolname"]: each["rolcanlogin"] for each in roles} == {
        "crossfade_owner": False,
        "crossfade_lookup": False,
        "crossfade_sync": True,
        "crossfade_reader": True,
        "crossfade_control": True,
        "application_role": True,
    }


@pytest.mark.parametrize("table", ["transition", "audit"])
@pytest.mark.parametrize(
    "change", ["UPDATE crossfade.{} SET reason = ''", "DELETE FROM crossfade.{}", "TRUNCATE crossfade.{}"]
)
@pytest.mark.parametrize("role", ["crossfade_control", "crossfade_sync", "application_role"])
async def test_what_was_done_stays_noted(
    spaces_database: Database, role: str, change: str, table: str
) -> None:
    async with spaces_database.connect(role) as opened:
        with pytest.raises(asyncpg.InsufficientPrivilegeError):
            await opened.execute(change.format(table))


async def add_lead(connection: asyncpg.Connection, tenant: UUID, **columns: object) -> UUID:
    lead, names = uuid4(), ["id", "tenant_id", *columns]
    places = ", ".join(f"${place}" for place in range(1, len(names) + 1))
    await connection.execute(
        f"INSERT INTO leads ({', '.join(names)}) VALUES ({places})", lead, tenant, *columns.values()
    )
    return lead


@pytest.fixture
def tenant() -> UUID:
    return uuid4()


@pytest_asyncio.fixture(params=["replica", "origin"])
async def sync(
    spaces_database: Database, spaces: asyncpg.Connection, tenant: UUID, request: pytest.FixtureRequest
) -> AsyncIterator[asyncpg.Connection]:
    """The sync's connection within a transaction, with the privilege of being a replica and without it."""
    await spaces.execute("INSERT INTO tenants (id, name, subdomain) VALUES ($1, 'a', 'a')", tenant)
    async with spaces_database.connect("crossfade_sync") as opened, opened.transaction():
        await opened.execute("SELECT set_config('crossfade.tenants', $1, true)", str(tenant))
        await opened.execute(f"SET LOCAL session_replication_role = {request.param}")
        yield opened


async def test_search_finds_what_the_sync_wrote(sync: asyncpg.Connection, tenant: UUID) -> None:
    found = "SELECT id FROM leads WHERE search_vector @@ to_tsquery('simple', $1)"
    lead = await add_lead(sync, tenant, name="Ada Lovelace", email="ada@example.org", source="Newsletter")
    for word in ("lovelace", "ada@example.org", "newsletter"):
        assert await sync.fetchval(found, word) == lead
    await sync.execute("UPDATE leads SET name = 'Grace', email = NULL WHERE id = $1", lead)
    assert await sync.fetchval(found, "grace") == lead
    assert await sync.fetchval(found, "lovelace") is None


async def test_sync_keeps_the_document_s_updated_at(sync: asyncpg.Connection, tenant: UUID) -> None:
    lead = await add_lead(sync, tenant, name="Ada", updated_at=None)
    await sync.execute("UPDATE leads SET name = 'Grace' WHERE id = $1", lead)
    assert await sync.fetchval("SELECT updated_at FROM leads WHERE id = $1", lead) is None


async def test_sync_as_replica_needs_no_parent_row_and_otherwise_does(
    sync: asyncpg.Connection, tenant: UUID
) -> None:
    orphan = {"name": "Ada", "assigned_to": uuid4()}
    if await sync.fetchval("SHOW session_replication_role") == "replica":
        await add_lead(sync, tenant, **orphan)
    else:
        with pytest.raises(asyncpg.ForeignKeyViolationError):
            await add_lead(sync, tenant, **orphan)


@pytest_asyncio.fixture
async def application(
    spaces_database: Database, spaces: asyncpg.Connection, tenant: UUID
) -> AsyncIterator[asyncpg.Connection]:
    async with spaces_database.connect("application_role") as opened:
        await opened.execute("SELECT set_config('app.current_tenant_id', $1, false)", str(tenant))
        await opened.execute("INSERT INTO tenants (id, name, subdomain) VALUES ($1, 'a', 'a')", tenant)
        yield opened


@pytest.mark.parametrize(
    ("table", "required"),
    [
        ("tenants", {}),
        ("users", {"email": "ada@example.org"}),
        ("pages", {"title": "Home", "slug": "home"}),
        ("form_configs", {"name": "Contact", "slug": "contact"}),
        ("leads", {}),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
async def test_application_s_change_moves_updated_at(
    application: asyncpg.Connection, tenant: UUID, table: str, required: dict[str, str]
) -> None:
    row = tenant if table == "tenants" else uuid4()
    if table != "tenants":
        names, values = ", ".join(["id", "tenant_id", *required]), [row, tenant, *required.values()]
        places = ", ".join(f"${place}" for place in range(1, len(values) + 1))
        await application.execute(f"INSERT INTO {table} ({names}) VALUES ({places})", *values)
    moment = f"SELECT updated_at FROM {table} WHERE id = $1"
    born = await application.fetchval(moment, row)

    await application.execute(f"UPDATE {table} SET rest = rest WHERE id = $1", row)
    assert await application.fetchval(moment, row) == born
    await application.execute(f"UPDATE {table} SET rest = '{{}}' WHERE id = $1", row)
    assert await application.fetchval(moment, row) > born
    await application.execute(
        f"UPDATE {table} SET rest = '[]', updated_at = '2001-01-01Z' WHERE id = $1", row
    )
    assert (await application.fetchval(moment, row)).year == 2001

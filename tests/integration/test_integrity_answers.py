"""`crossfade check --integrity`: what it says where it cannot look, and how little it takes."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest
from pydantic import SecretStr

from tests.support.integrity import TABLES, checked, only, planting, untrue
from tests.support.schema_database import Database
from tests.support.tenant_rows import Tenant
from worker.postgres.integrity import CHECKS

pytest_plugins = ["tests.support.schema_fixtures"]
NOWHERE = "127.0.0.1:9"

LETTER = """
INSERT INTO crossfade.dead_letter (state, kind, reason, namespace, tenant_id, topic, partition, "offset",
    event, batch_id)
SELECT $1, $2, '', $3, $4, 't', 0, coalesce(max("offset"), 0) + 1, '', 1 FROM crossfade.dead_letter
"""


async def test_dead_letters_and_parked_events_by_tenant_and_collection(spaces_database: Database) -> None:
    one, two = Tenant(), Tenant()
    async with planting(spaces_database, one, two) as connection:
        for state, kind, collection, tenant, times in (
            ("dead", "mapping", "s.pages", one.id, 3),
            ("dead", "data", "s.pages", one.id, 1),
            ("parked", "unique", "s.users", two.id, 2),
            ("dead", "envelope", "s.users", None, 1),
            ("healed", "unique", "s.users", two.id, 5),
            ("discarded", "data", "s.users", one.id, 5),
        ):
            for _ in range(times):
                await connection.execute(LETTER, state, kind, collection, tenant)
        checks = await checked(spaces_database)
        assert untrue(checks) == {"dead letters": False}
        told = {
            (one["tenant"], one["collection"], one["state"], one["kind"]): one["letters"]
            for one in checks["dead letters"].findings
        }
        assert told == {
            (str(one.id), "s.pages", "dead", "mapping"): 3,
            (str(one.id), "s.pages", "dead", "data"): 1,
            (str(two.id), "s.users", "parked", "unique"): 2,
            (None, "s.users", "dead", "envelope"): 1,
        }
        findings = (await checked(spaces_database, tenant=two.id))["dead letters"].findings
        assert {one["tenant"] for one in findings} == {str(two.id), None}


async def test_a_broken_twin_of_an_index_that_holds_is_no_fault(spaces_database: Database) -> None:
    """REINDEX CONCURRENTLY leaves one when it is cut short."""
    async with planting(spaces_database, Tenant()) as connection:
        await connection.execute(
            "CREATE UNIQUE INDEX one ON pages (slug); CREATE UNIQUE INDEX two ON pages (slug)"
        )
        await connection.execute("UPDATE pg_index SET indisvalid = false WHERE indexrelid = 'two'::regclass")
        assert untrue(await checked(spaces_database)) == {}
        await connection.execute("UPDATE pg_index SET indisvalid = false WHERE indexrelid = 'one'::regclass")
        check = (await checked(spaces_database))["uniqueness"]
        assert only(check)["indexes"] == ["one", "two"]


async def test_a_deferrable_constraint_that_replicas_skip_is_named_with_its_duplicates(
    spaces_database: Database,
) -> None:
    async with planting(spaces_database, Tenant()) as connection:
        await connection.execute(
            "ALTER TABLE users DROP CONSTRAINT unique_email_per_tenant, "
            "ADD CONSTRAINT mails UNIQUE (tenant_id, email) DEFERRABLE"
        )
        await connection.execute(
            "INSERT INTO users (id, tenant_id, email) SELECT gen_random_uuid(), tenant_id, email FROM users"
        )
        remedy = (await checked(spaces_database))["uniqueness"].remedy
        assert "ALTER TABLE users ENABLE ALWAYS TRIGGER" in remedy


async def test_a_deferrable_exclusion_constraint_is_not_looked_at(spaces_database: Database) -> None:
    async with planting(spaces_database, Tenant()) as connection:
        await connection.execute(
            "ALTER TABLE pages ADD CONSTRAINT apart EXCLUDE USING btree (slug WITH =) DEFERRABLE"
        )
        checks = await checked(spaces_database)
    assert untrue(checks) == {"uniqueness": None}
    assert "pages (apart)" in checks["uniqueness"].detail


@pytest.mark.parametrize(
    "ddl", ["DROP POLICY crossfade_reader ON users", "REVOKE SELECT ON users FROM crossfade_reader"]
)
async def test_a_table_that_the_role_does_not_see_whole_is_unknown(
    spaces_database: Database, ddl: str
) -> None:
    async with planting(spaces_database, Tenant()) as connection:
        await connection.execute(ddl)
        await connection.execute("DELETE FROM tenants")
        checks = await checked(spaces_database)
    assert untrue(checks) == {"rows": None, "orphans": None, "tenants": False, "uniqueness": None}
    assert "crossfade_reader does not see all rows of users" in checks["rows"].detail


async def test_where_the_tenants_are_not_seen_nobody_is_said_to_lack_one(spaces_database: Database) -> None:
    async with planting(spaces_database, one := Tenant()) as connection:
        await connection.execute("DROP POLICY crossfade_reader ON tenants")
        for tenant in (None, one.id):
            checks = await checked(spaces_database, tenant=tenant)
            assert untrue(checks) == {"rows": None, "tenants": None, "uniqueness": None}


async def test_the_sync_role_sees_too_little(spaces_database: Database) -> None:
    async with planting(spaces_database, Tenant()):
        checks = await checked(spaces_database, role="crossfade_sync")
    asked = {name: None for name in CHECKS if name != "dead letters"}
    assert untrue(checks) == asked


@pytest.mark.parametrize(
    ("other", "unanswered"),
    [
        ({"postgres_reader_dsn": None}, CHECKS),
        ({"postgres_reader_dsn": SecretStr(f"postgresql://x:s3cret@{NOWHERE}/x")}, CHECKS),
        ({"mongo_uri": SecretStr(f"mongodb://x:s3cret@{NOWHERE}/?serverSelectionTimeoutMS=500")}, ["rows"]),
    ],
)
async def test_what_cannot_be_asked_is_unknown(
    spaces_database: Database, other: dict[str, Any], unanswered: list[str]
) -> None:
    async with planting(spaces_database, Tenant()):
        checks = await checked(spaces_database, **other)
    assert untrue(checks) == dict.fromkeys(unanswered)
    assert all(checks[name].remedy for name in unanswered)
    assert "s3cret" not in str(checks)


async def test_a_table_that_does_not_fit_the_mapping(spaces_database: Database) -> None:
    async with planting(spaces_database, Tenant()) as connection:
        await connection.execute("ALTER TABLE lead_activities RENAME tenant_id TO tenant")
        checks = await checked(spaces_database)
        assert checks["rows"].ok is None and checks["child rows"].ok is None
        assert "lead_activities: does not fit the mapping" in checks["rows"].detail
        assert checks["search vectors"].ok and checks["uniqueness"].ok
        await connection.execute("DROP TABLE lead_activities")
        checks = await checked(spaces_database)
        assert checks["rows"].ok is False and "lacks lead_activities" in checks["rows"].detail


async def test_a_statement_that_takes_too_long_is_told_and_the_others_go_on(
    spaces_database: Database,
) -> None:
    async with planting(spaces_database, Tenant()) as connection:
        await connection.execute(
            "ALTER TABLE pages RENAME TO slow; CREATE VIEW pages AS SELECT * FROM slow "
            "WHERE pg_sleep(5) IS NOT NULL; GRANT SELECT ON pages TO crossfade_reader"
        )
        checks = await checked(spaces_database, seconds=0.3)
    assert untrue(checks) == {"rows": None, "tenants": None, "uniqueness": False}
    assert "pages: a statement took longer than 0.3 s" in checks["tenants"].detail
    assert len(checks["rows"].findings) == len(TABLES) - 1


async def test_a_table_that_is_locked_is_not_waited_for(spaces_database: Database) -> None:
    async with planting(spaces_database, Tenant()) as connection, connection.transaction():
        await connection.execute("LOCK TABLE pages")
        async with asyncio.timeout(20):
            checks = await checked(spaces_database, seconds=0.3)
    assert set(untrue(checks).values()) == {None}
    assert "a statement took longer than 0.3 s" in checks["rows"].detail


WAITING = """
CREATE FUNCTION wait() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN
    NEW.search_vector := to_tsvector('pg_catalog.simple', coalesce(NEW.name, ''));
    IF session_user = 'crossfade_reader' THEN PERFORM pg_advisory_xact_lock(42); END IF;
    RETURN NEW;
END $$;
DROP TRIGGER search_vector_follows ON leads;
CREATE TRIGGER waits BEFORE INSERT OR UPDATE ON leads FOR EACH ROW EXECUTE FUNCTION wait();
"""
WAITS = (
    "SELECT pid FROM pg_locks WHERE locktype = 'advisory' AND NOT granted AND database = "
    "(SELECT oid FROM pg_database WHERE datname = current_database())"
)
LOCKS = """
SELECT DISTINCT mode FROM pg_locks JOIN pg_class c ON c.oid = relation
WHERE pid = $1 AND c.relpersistence = 'p' AND relnamespace = 'public'::regnamespace
"""


async def test_the_application_writes_the_very_rows_whose_vectors_are_made_anew(
    spaces_database: Database,
) -> None:
    one = Tenant()
    async with planting(spaces_database, one) as connection:
        await connection.execute(WAITING)
        await connection.execute("SELECT pg_advisory_lock(42)")
        running = asyncio.create_task(checked(spaces_database))
        async with asyncio.timeout(30):
            while (pid := await connection.fetchval(WAITS)) is None:  # noqa: ASYNC110
                await asyncio.sleep(0.02)
        assert [row[0] for row in await connection.fetch(LOCKS, pid)] == ["AccessShareLock"]
        await connection.execute("SET lock_timeout = '1s'; SET session_replication_role = origin")
        await connection.execute("UPDATE leads SET name = 'Ada'; DELETE FROM lead_activities")
        await connection.execute("VACUUM leads")
        await connection.execute("SELECT pg_advisory_unlock(42)")
        assert untrue(await running) == {}
        assert untrue(await checked(spaces_database)) == {}


@pytest.mark.parametrize(
    ("ddl", "told"),
    [
        ("REVOKE TEMPORARY ON DATABASE {0} FROM PUBLIC", "PostgreSQL refuses (42501"),
        ("{1}; REVOKE EXECUTE ON FUNCTION wait() FROM PUBLIC", "PostgreSQL refuses (42501"),
        (
            "ALTER TABLE lead_activities DROP CONSTRAINT lead_activities_lead_id_fkey; "
            "ALTER TABLE leads DROP CONSTRAINT leads_pkey; "
            "CREATE UNIQUE INDEX ON leads (id) WHERE status IS NULL; CREATE INDEX ON leads (id)",
            "without a unique index",
        ),
    ],
)
async def test_vectors_that_cannot_be_made_anew_are_unknown(
    spaces_database: Database, ddl: str, told: str
) -> None:
    async with planting(spaces_database, Tenant()) as connection:
        await connection.execute(ddl.format(spaces_database.name, WAITING))
        check = (await checked(spaces_database))["search vectors"]
    assert check.ok is None and told in check.detail


async def test_a_reader_that_is_read_only_by_default(spaces_database: Database) -> None:
    async with planting(spaces_database, Tenant()) as connection:
        await connection.execute(
            f"ALTER DATABASE {spaces_database.name} SET default_transaction_read_only = on"
        )
        assert untrue(await checked(spaces_database)) == {}

"""Each way in which live tables do not fit a mapping, provoked in a real database, and told in one line."""

from __future__ import annotations

from typing import Any
from uuid import uuid4

import asyncpg
import pytest
import structlog

from tests.support.live_tables import SPACES, changed, faults, of_one_column, things
from tests.support.schema_database import Database
from worker.apply import preconditions
from worker.errors import SchemaError
from worker.mapping import CollectionPlan
from worker.postgres.tables import require_tables
from worker.postgres.target import TargetTable

pytest_plugins = ["tests.support.schema_fixtures"]
ACCESS = "as schema/spaces/004_crossfade_access.sql does"


async def test_the_reference_schema_fits_the_reference_mapping(shared_spaces_database: Database) -> None:
    assert await faults(shared_spaces_database, "SELECT") == []


FAULTS = {
    "ALTER TABLE pages RENAME TO pagess": [
        "table pages: is missing (did you mean pagess?): run `crossfade schema apply --target` with the "
        "folder of its SQL, or mend the mapping"
    ],
    "CREATE SCHEMA app; ALTER TABLE pages SET SCHEMA app": [
        "table pages: is in schema app, where crossfade_sync does not look: GRANT USAGE ON SCHEMA "
        '"app" TO crossfade_sync, and ALTER ROLE crossfade_sync SET search_path = "app"'
    ],
    "DROP TABLE pages; CREATE VIEW pages AS SELECT 1 AS id": [
        "table pages: is a view: name the table that holds the rows"
    ],
    "DROP TABLE pages; CREATE MATERIALIZED VIEW pages AS SELECT 1 AS id": [
        "table pages: is a materialized view: name the table that holds the rows"
    ],
    "DROP TABLE pages; CREATE FOREIGN DATA WRAPPER w; CREATE SERVER s FOREIGN DATA WRAPPER w; "
    "CREATE FOREIGN TABLE pages (id uuid) SERVER s": [
        "table pages: is a foreign table: name the table that holds the rows"
    ],
    "ALTER TABLE lead_activities SET UNLOGGED": [
        "table lead_activities: is unlogged: a crash of PostgreSQL empties it, and the ledger would not "
        "know: ALTER TABLE lead_activities SET LOGGED"
    ],
    "ALTER TABLE leads RENAME score TO scores": [
        "table leads, column score: is missing (did you mean scores?): ALTER TABLE leads ADD COLUMN "
        '"score" double precision, or mend the mapping'
    ],
    "ALTER TABLE pages DROP tenant_id CASCADE; " + "CREATE POLICY a ON pages USING (id IS NULL)": [
        'table pages, column tenant_id: is missing: ALTER TABLE pages ADD COLUMN "tenant_id" uuid, or mend '
        "the mapping"
    ],
    "ALTER TABLE pages DROP rest": [
        'table pages, column rest: is missing: ALTER TABLE pages ADD COLUMN "rest" jsonb, or mend the mapping'
    ],
    "ALTER TABLE pages ALTER title TYPE varchar(80)": [
        "table pages, column title: is character varying(80), which does not hold all that text does: "
        'ALTER TABLE pages ALTER COLUMN "title" TYPE text, or say varchar(80) in the mapping'
    ],
    "ALTER TABLE pages ALTER version TYPE smallint": [
        "table pages, column version: is smallint, which does not hold all that integer does: "
        'ALTER TABLE pages ALTER COLUMN "version" TYPE integer, or say smallint in the mapping'
    ],
    "ALTER TABLE pages ALTER rest TYPE json": [
        "table pages, column rest: is json, which does not hold all that jsonb does: "
        'ALTER TABLE pages ALTER COLUMN "rest" TYPE jsonb'
    ],
    "ALTER TABLE lead_activities ALTER position TYPE smallint": [
        "table lead_activities, column position: is smallint, which does not hold all that integer does: "
        'ALTER TABLE lead_activities ALTER COLUMN "position" TYPE integer, or say smallint in the mapping'
    ],
    "ALTER TABLE pages DROP version; "
    "ALTER TABLE pages ADD version integer GENERATED ALWAYS AS (length(title)) STORED": [
        "table pages, column version: is a generated column, which takes no value: "
        'ALTER TABLE pages ALTER COLUMN "version" DROP EXPRESSION'
    ],
    "ALTER TABLE pages ALTER version SET NOT NULL; "
    "ALTER TABLE pages ALTER version ADD GENERATED ALWAYS AS IDENTITY": [
        "table pages, column version: is GENERATED ALWAYS AS IDENTITY, which takes no value: "
        'ALTER TABLE pages ALTER COLUMN "version" DROP IDENTITY',
        "table pages, column version: is NOT NULL, and documents without a fitting value would write NULL: "
        'ALTER TABLE pages ALTER COLUMN "version" DROP NOT NULL, or give the column `required` or `default` '
        "in the mapping",
    ],
    "ALTER TABLE pages ALTER status SET NOT NULL": [
        "table pages, column status: is NOT NULL, and documents without a fitting value would write NULL: "
        'ALTER TABLE pages ALTER COLUMN "status" DROP NOT NULL, or give the column `required` or `default` '
        "in the mapping"
    ],
    "ALTER TABLE pages ALTER rest SET NOT NULL": [
        "table pages, column rest: is NOT NULL, and documents without a fitting value would write NULL: "
        'ALTER TABLE pages ALTER COLUMN "rest" DROP NOT NULL'
    ],
    "CREATE DOMAIN filled AS text NOT NULL; ALTER TABLE pages ALTER status TYPE filled": [
        "table pages, column status: is NOT NULL, and documents without a fitting value would write NULL: "
        'ALTER TABLE pages ALTER COLUMN "status" DROP NOT NULL, or give the column `required` or `default` '
        "in the mapping"
    ],
    "ALTER TABLE pages ADD layout text NOT NULL": [
        "table pages, column layout: is NOT NULL without a default, and the mapping gives it no value: map "
        'it, give it a default, or ALTER TABLE pages ALTER COLUMN "layout" DROP NOT NULL'
    ],
    "ALTER TABLE pages DROP CONSTRAINT pages_pkey": [
        "table pages: has no primary key or unique index on exactly (id): ALTER TABLE pages ADD PRIMARY KEY "
        '("id")'
    ],
    "ALTER TABLE pages DROP CONSTRAINT pages_pkey; ALTER TABLE pages ADD PRIMARY KEY (id, tenant_id)": [
        "table pages: has no primary key or unique index on exactly (id): ALTER TABLE pages ADD PRIMARY KEY "
        '("id")'
    ],
    "ALTER TABLE pages DROP CONSTRAINT pages_pkey; CREATE UNIQUE INDEX ON pages (id) WHERE rest IS NULL": [
        "table pages: has no primary key or unique index on exactly (id): ALTER TABLE pages ADD PRIMARY KEY "
        '("id")'
    ],
    "ALTER TABLE pages ADD UNIQUE (id) DEFERRABLE": [
        "table pages: its unique constraint on (id) is deferrable, so ON CONFLICT cannot use it: make the "
        "constraint again, NOT DEFERRABLE"
    ],
    "ALTER TABLE pages DISABLE ROW LEVEL SECURITY": [
        "table pages: row-level security is off, and its rows are of many tenants: ALTER TABLE pages ENABLE "
        "ROW LEVEL SECURITY, FORCE ROW LEVEL SECURITY"
    ],
    "ALTER TABLE pages NO FORCE ROW LEVEL SECURITY": [
        "table pages: row-level security is not forced, and its rows are of many tenants: ALTER TABLE pages "
        "ENABLE ROW LEVEL SECURITY, FORCE ROW LEVEL SECURITY"
    ],
    "DROP POLICY crossfade_sync ON pages": [
        "table pages: no policy lets crossfade_sync SELECT, INSERT, UPDATE, DELETE: CREATE POLICY "
        f"crossfade_sync, {ACCESS}"
    ],
    "DROP POLICY crossfade_sync ON pages; CREATE POLICY a ON pages FOR SELECT USING (id IS NULL)": [
        f"table pages: no policy lets crossfade_sync INSERT, UPDATE, DELETE: CREATE POLICY crossfade_sync, "
        f"{ACCESS}"
    ],
    "CREATE POLICY open ON pages USING (true)": [
        "table pages: policy open lets crossfade_sync at the rows of every tenant: let it compare with "
        f"crossfade.tenants, {ACCESS}"
    ],
    "REVOKE DELETE, UPDATE ON pages FROM crossfade_sync": [
        "table pages: crossfade_sync has no privilege to UPDATE, DELETE: GRANT UPDATE, DELETE ON pages TO "
        "crossfade_sync"
    ],
    "ALTER ROLE crossfade_sync BYPASSRLS": [
        "role crossfade_sync passes by row-level security, so no wrong tenant would be refused: connect as "
        "crossfade_sync, NOSUPERUSER and NOBYPASSRLS"
    ],
}


@pytest.mark.parametrize("ddl", FAULTS, ids=lambda ddl: ddl[:70])
async def test_a_fault_is_told_in_one_line(shared_spaces_database: Database, ddl: str) -> None:
    assert await faults(shared_spaces_database, ddl) == FAULTS[ddl]


HARMLESS = (
    "ALTER TABLE pages ALTER version TYPE bigint",
    "ALTER TABLE lead_activities ALTER position TYPE bigint",
    "ALTER TABLE pages ALTER published_at TYPE timestamptz(3)",
    "ALTER TABLE pages ADD number integer GENERATED ALWAYS AS IDENTITY, ADD made date NOT NULL DEFAULT now()",
    "CREATE DOMAIN slug AS text CHECK (VALUE <> ''); ALTER TABLE pages ALTER slug TYPE slug",
    "CREATE POLICY of_all ON pages USING (tenant_id = current_setting('app.current_tenant_id', true)::uuid)",
    "CREATE SCHEMA app; CREATE TABLE app.pages (id text)",
    "ALTER TABLE pages ALTER title SET NOT NULL, ALTER tenant_id DROP NOT NULL",
    "CREATE TABLE pages2 (LIKE pages INCLUDING ALL) PARTITION BY HASH (id); DROP TABLE pages; "
    "ALTER TABLE pages2 RENAME TO pages; CREATE TABLE pages_0 PARTITION OF pages FOR VALUES WITH (MODULUS 1, "
    "REMAINDER 0); ALTER TABLE pages ENABLE ROW LEVEL SECURITY, FORCE ROW LEVEL SECURITY; "
    "GRANT ALL ON pages TO crossfade_sync; CREATE POLICY a ON pages USING (id IS NOT NULL)",
)


@pytest.mark.parametrize("ddl", HARMLESS, ids=lambda ddl: ddl[:70])
async def test_what_does_no_harm_is_no_fault(shared_spaces_database: Database, ddl: str) -> None:
    assert await faults(shared_spaces_database, ddl) == []


async def test_all_faults_of_all_tables_are_told_at_once(shared_spaces_database: Database) -> None:
    ddl = ";".join(
        (
            "DROP TABLE user_passwords",
            "ALTER TABLE users DROP profile, ALTER email TYPE varchar(9)",
            "ALTER TABLE leads DISABLE ROW LEVEL SECURITY",
        )
    )
    async with changed(shared_spaces_database, ddl) as connection:
        with pytest.raises(SchemaError) as raised:
            await require_tables(connection, SPACES)
    first, *lines = str(raised.value).split("\n")
    assert first == "the tables in PostgreSQL do not fit the mapping"
    assert [line.split(":")[0].strip() for line in lines] == [
        "table users, column email",
        "table users, column profile",
        "table user_passwords",
        "table leads",
    ]


SEVERAL_STEPS = ("AS (length(title))", "PRIMARY KEY (id, tenant_id)", "TYPE filled")  # or not by ALTER alone
MENDABLE = {
    ddl: told[0].split(": ")[-1].split(", or ")[0]
    for ddl, told in FAULTS.items()
    if len(told) == 1 and ": ALTER TABLE" in told[0] and not any(part in ddl for part in SEVERAL_STEPS)
}


@pytest.mark.parametrize("ddl", MENDABLE, ids=lambda ddl: ddl[:70])
async def test_a_remedy_is_sql_that_mends_its_fault(shared_spaces_database: Database, ddl: str) -> None:
    assert await faults(shared_spaces_database, f"{ddl}; {MENDABLE[ddl]}") == []


@pytest.mark.parametrize("more", [{"required": True}, {"default": "none"}])
async def test_a_column_that_is_never_null_may_be_not_null(
    shared_spaces_database: Database, more: dict[str, Any]
) -> None:
    ddl = things("text NOT NULL")
    assert await faults(shared_spaces_database, ddl, of_one_column("text", **more)) == []
    assert len(await faults(shared_spaces_database, ddl, of_one_column("text"))) == 1


async def test_a_shared_table_needs_no_wall_but_a_policy_where_it_has_one(
    shared_spaces_database: Database,
) -> None:
    mapping = of_one_column("text")
    assert await faults(shared_spaces_database, things("text"), mapping) == []
    walled = things("text") + "; ALTER TABLE things ENABLE ROW LEVEL SECURITY"
    [told] = await faults(shared_spaces_database, walled, mapping)
    assert told.startswith("table things: no policy lets crossfade_sync SELECT, INSERT, UPDATE, DELETE: ")
    assert (
        await faults(shared_spaces_database, f"{walled}; CREATE POLICY a ON things USING (true)", mapping)
        == []
    )


async def test_a_deferrable_key_really_cannot_arbitrate(shared_spaces_database: Database) -> None:
    """Why such a table is refused: PostgreSQL says so only when the first row comes."""
    plan = CollectionPlan(of_one_column("text").collections["things"])
    ddl = things("text") + "; ALTER TABLE things ADD UNIQUE (id) DEFERRABLE"
    async with changed(shared_spaces_database, ddl) as connection:
        with pytest.raises(asyncpg.ObjectNotInPrerequisiteStateError):
            await TargetTable(plan.table).upsert(connection, [plan.rows({"_id": uuid4()}).row])


async def test_collections_that_cannot_be_fenced_are_named_at_start(
    shared_spaces_database: Database,
) -> None:
    async with changed(shared_spaces_database, things("text")) as connection:
        with structlog.testing.capture_logs() as logs:
            await preconditions.require(connection, SPACES)
            assert logs == []
            await preconditions.require(connection, of_one_column("text"))
    [log] = logs
    assert (log["log_level"], log["collection"]) == ("warning", "things")
    assert "no tenant" in log["reason"]

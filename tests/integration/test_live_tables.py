"""Each way in which live tables do not fit a mapping, provoked in a real database, and told in one line."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import Any
from uuid import UUID, uuid4

import asyncpg
import pytest
from bson import Decimal128, Int64

from tests.support.schema_database import Database
from worker.errors import SchemaError
from worker.mapping import CollectionPlan, Mapping, Rebuilder, load
from worker.postgres.connect import use_raw_json
from worker.postgres.documents import TargetDocuments
from worker.postgres.tables import require_tables, table_faults
from worker.postgres.target import TargetTable

pytest_plugins = ["tests.support.schema_fixtures"]
SPACES = load(Path(__file__).parents[2] / "schema/spaces/mapping.yaml")
ACCESS = "as schema/spaces/004_crossfade_access.sql does"
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


DAY = datetime(1969, 12, 31, tzinfo=UTC)
EXTREMES: dict[str, list[Any]] = {
    "text": ["", "a" * 5000, "trailing  "],
    "varchar(4)": ["äöüß", "ab  "],
    "uuid": [uuid4()],
    "boolean": [True, False],
    "smallint": [-(2**15), 2**15 - 1],
    "integer": [-(2**31), 2**31 - 1],
    "bigint": [Int64(-(2**63)), Int64(2**63 - 1)],
    "double precision": [0.1, -0.0, float("inf"), 5e-324],
    "numeric": [Decimal128("1234567890.1234567890123456789012"), Decimal128("1.20"), Decimal128("Infinity")],
    "timestamptz": [DAY.replace(microsecond=999_000), datetime(9999, 12, 31, 23, 59, 59, 999_000, UTC)],
    "date": [DAY],
    "bytea": [b"\0\xff"],
    "jsonb": [{"b": 1, "a": [1, None]}, "text"],
    "text[]": [["a", "b  "], []],
    "varchar(4)[]": [["äöüß"]],
    "integer[]": [[1, 2**31 - 1]],
    "enum(color)": ["red"],
    "enum(color)[]": [["red", "green"]],
}
FITTING = [
    *((type_, type_) for type_ in EXTREMES if "color" not in type_),
    *((f"enum(color){array}", f"color{array}") for array in ("", "[]")),
    *(("text", live) for live in ("varchar", "citext", "note")),
    *(("varchar(4)", live) for live in ("varchar(5)", "varchar", "text", "citext")),
    *(("smallint", live) for live in ("integer", "bigint")),
    ("integer", "bigint"),
    ("integer[]", "bigint[]"),
    ("text[]", "varchar[]"),
    ("varchar(4)[]", "varchar(4)[]"),
    ("timestamptz", "timestamptz(3)"),
]


@pytest.mark.parametrize(("type_", "live"), FITTING)
async def test_a_type_that_fits_gives_every_value_back(
    shared_spaces_database: Database, type_: str, live: str
) -> None:
    mapping = of_one_column(type_, **({"values": ["red", "green"]} if "enum" in type_ else {}))
    one = mapping.collections["things"]
    plan, rebuilder = CollectionPlan(one), Rebuilder(one)
    async with changed(shared_spaces_database, things(live)) as connection:
        assert await table_faults(connection, mapping) == []
        documents = [{"_id": uuid4(), "x": value} for value in EXTREMES[type_]]
        made = [plan.rows(document).row for document in documents]
        assert all(row["rest"] is None for row in made)
        for _ in range(2):  # the second time they are there
            await TargetTable(plan.table).upsert(connection, made)
        target = TargetDocuments([plan.table], rebuilder)
        read = await target.read(connection, [plan.row_id(document["_id"]) for document in documents])
    for document in documents:
        back = read[UUID(int=document["_id"].int)]
        assert repr(back["x"]) == repr(document["x"]) or back["x"] == document["x"]


REFUSED = [
    (
        "text",
        "varchar(5000)",
        'ALTER TABLE things ALTER COLUMN "x" TYPE text, or say varchar(5000) in the mapping',
    ),
    ("text", "char(10)", None),
    ("text", "uuid", None),
    ("text", "brief", None),
    ("text", "text[]", None),
    ("text", "color", None),
    ("varchar(4)", "varchar(3)", None),
    ("varchar(4)", "char(4)", None),
    ("varchar(4)[]", "varchar(3)[]", None),
    ("text[]", "text", None),
    ("uuid", "text", None),
    ("boolean", "integer", None),
    ("integer", "smallint", None),
    ("integer", "numeric", None),
    ("integer", "double precision", None),
    ("bigint", "integer", 'ALTER TABLE things ALTER COLUMN "x" TYPE bigint, or say integer in the mapping'),
    ("integer[]", "smallint[]", None),
    ("double precision", "real", None),
    ("double precision", "numeric", None),
    ("numeric", "numeric(12,2)", 'ALTER TABLE things ALTER COLUMN "x" TYPE numeric'),
    ("numeric", "double precision", None),
    ("timestamptz", "timestamptz(0)", 'ALTER TABLE things ALTER COLUMN "x" TYPE timestamptz'),
    ("timestamptz", "timestamp", None),
    ("timestamptz", "date", None),
    ("date", "timestamptz", None),
    ("bytea", "text", None),
    ("jsonb", "json", None),
    ("jsonb", "jsonb[]", None),
    ("enum(color)", "text", None),
    ("enum(colour)", "color", None),
]


@pytest.mark.parametrize(("type_", "live", "remedy"), REFUSED)
async def test_a_type_that_would_lose_something_is_refused(
    shared_spaces_database: Database, type_: str, live: str, remedy: str | None
) -> None:
    mapping = of_one_column(type_, **({"values": ["red"]} if "enum" in type_ else {}))
    [told] = await faults(shared_spaces_database, things(live), mapping)
    assert told.startswith("table things, column x: is ")
    assert ", which does not hold all that " in told
    if remedy:
        assert told.endswith(f": {remedy}")


async def test_labels_that_the_type_lacks(shared_spaces_database: Database) -> None:
    mapping = of_one_column("enum(color)", values=["red", "grean"])
    assert await faults(shared_spaces_database, things("color"), mapping) == [
        "table things, column x: its type color has no label 'grean' (did you mean 'green'?): "
        'ALTER TYPE "color" ADD VALUE, or mend `values`'
    ]


async def test_an_enumerated_type_of_a_schema_that_is_not_looked_in(shared_spaces_database: Database) -> None:
    ddl = (
        "CREATE SCHEMA app; CREATE TYPE app.shade AS ENUM ('red');"
        f"CREATE TABLE things (id uuid PRIMARY KEY, x app.shade, rest jsonb); GRANT ALL ON things TO {SYNC}"
    )
    [told] = await faults(shared_spaces_database, ddl, of_one_column("enum(shade)", values=["red"]))
    assert told.startswith("table things, column x: is app.shade, which does not hold")


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

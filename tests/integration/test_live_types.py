"""Which live types hold all of a mapping's type: those give every value back, the others are told."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Any
from uuid import UUID, uuid4

import pytest
from bson import Decimal128, Int64

from tests.support.live_tables import SYNC, changed, faults, of_one_column, things
from tests.support.schema_database import Database
from worker.mapping import CollectionPlan, Rebuilder
from worker.postgres import target
from worker.postgres.documents import TargetDocuments
from worker.postgres.tables import table_faults
from worker.postgres.target import TargetTable

pytest_plugins = ["tests.support.schema_fixtures"]


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


async def test_rows_that_are_too_many_for_one_statement_are_all_written(
    shared_spaces_database: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    """jsonb ends at 256 MB: a document of 16 MB may have that in elements."""
    monkeypatch.setattr(target, "_AT_ONCE", 2)
    plan = CollectionPlan(of_one_column("integer").collections["things"])
    async with changed(shared_spaces_database, things("integer")) as connection:
        rows = [plan.rows({"_id": uuid4(), "x": number}).row for number in range(5)]
        for _ in range(2):
            await TargetTable(plan.table).upsert(connection, rows)
        assert await connection.fetchval("SELECT sum(x) FROM things") == 10


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

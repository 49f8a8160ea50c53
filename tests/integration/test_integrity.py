"""`crossfade check --integrity`: each thing that can be wrong with rows, planted in a database and found."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import suppress
from uuid import uuid4

import asyncpg
import pytest

from tests.support.integrity import TABLES, checked, only, planting, untrue
from tests.support.schema_database import Database
from tests.support.tenant_rows import Tenant
from worker.postgres import walk

pytest_plugins = ["tests.support.schema_fixtures"]


@pytest.fixture(params=[walk.CHUNK, 1])
def chunk(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> int:
    """Rows of one statement: all that a test has, and one."""
    monkeypatch.setattr(walk, "CHUNK", request.param)
    return request.param


async def test_rows_that_are_right_pass_every_check(spaces_database: Database, chunk: int) -> None:
    one, two = Tenant(), Tenant()
    told: list[str] = []
    async with planting(spaces_database, one, two) as connection:
        await connection.execute("ANALYZE")
        checks = await checked(spaces_database, progress=told)
    assert untrue(checks) == {}
    rows = {finding["table"]: finding for finding in checks["rows"].findings}
    assert {table: finding["rows"] for table, finding in rows.items()} == dict.fromkeys(TABLES, 2)
    for table in TABLES:
        assert {finding["tenant"] for finding in rows[table]["tenants"]} == {str(one.id), str(two.id)}
    vector = only(checks["search vectors"])
    assert (vector["made_by"], vector["triggers"]) == ("trigger", ["search_vector_follows"])
    assert (vector["null"], vector["stale"]) == (0, 0)
    assert told[0] == f"tenants: {min(chunk, 2)}{' of about 2' if chunk == 1 else ''} rows"


async def test_one_tenants_rows_alone(spaces_database: Database, chunk: int) -> None:
    one, two = Tenant(), Tenant()
    async with planting(spaces_database, one, two) as connection:
        await connection.execute("UPDATE pages SET author_id = $1", uuid4())
        checks = await checked(spaces_database, tenant=one.id)
        assert untrue(checks) == {"orphans": False}
        assert only(checks["orphans"])["row_ids"] == [str(one.page)]
        assert {finding["rows"] for finding in checks["rows"].findings} == {1}
        stranger = uuid4()
        checks = await checked(spaces_database, tenant=stranger)
        assert untrue(checks) == {"tenants": False}
        assert f"tenant {stranger} has no row in tenants" in checks["tenants"].detail


async def test_a_reference_that_dangles(spaces_database: Database, chunk: int) -> None:
    one, two = Tenant(), Tenant()
    async with planting(spaces_database, one, two) as connection:
        await connection.execute("UPDATE leads SET assigned_to = $1", uuid4())
        checks = await checked(spaces_database)
        assert untrue(checks) == {"orphans": False}
        finding = only(checks["orphans"])
        assert (finding["table"], finding["columns"], finding["refers_to"]) == (
            "leads",
            ["assigned_to"],
            "users",
        )
        assert (finding["rows"], finding["row_ids"]) == (2, sorted([str(one.lead), str(two.lead)]))
        finding = only((await checked(spaces_database, limit=1))["orphans"])
        assert (finding["rows"], len(finding["row_ids"])) == (2, 1)


async def test_a_tenant_that_has_no_row(spaces_database: Database, chunk: int) -> None:
    one, two = Tenant(), Tenant()
    async with planting(spaces_database, one, two) as connection:
        await connection.execute("DELETE FROM tenants WHERE id = $1", two.id)
        checks = await checked(spaces_database)
    assert untrue(checks) == {"tenants": False}
    assert {finding["table"]: finding["row_ids"] for finding in checks["tenants"].findings} == {
        "users": [str(two.user)],
        "user_passwords": [str(two.password)],
        "pages": [str(two.page)],
        "form_configs": [str(two.form)],
        "leads": [str(two.lead)],
        "lead_activities": [f"{two.lead}/0"],
    }


async def test_a_row_without_a_tenant(spaces_database: Database) -> None:
    one = Tenant()
    async with planting(spaces_database, one) as connection:
        await connection.execute("ALTER TABLE pages ALTER tenant_id DROP NOT NULL")
        await connection.execute("UPDATE pages SET tenant_id = NULL")
        checks = await checked(spaces_database)
    assert untrue(checks) == {"tenants": False}
    assert only(checks["tenants"])["row_ids"] == [str(one.page)]


@pytest.mark.parametrize("declared", [True, False])
async def test_a_child_row_without_its_parent(spaces_database: Database, chunk: int, declared: bool) -> None:
    one = Tenant()
    async with planting(spaces_database, one) as connection:
        if not declared:
            await connection.execute(
                "ALTER TABLE lead_activities DROP CONSTRAINT lead_activities_lead_id_fkey"
            )
        await connection.execute("DELETE FROM leads")
        checks = await checked(spaces_database)
    assert untrue(checks) == {"child rows": False}
    finding = only(checks["child rows"])
    assert (finding["wrong"], finding["refers_to"]) == ("parent missing", "leads")
    assert finding["row_ids"] == [f"{one.lead}/0"]


async def test_a_child_row_of_another_tenant_than_its_parent(spaces_database: Database, chunk: int) -> None:
    one, two = Tenant(), Tenant()
    async with planting(spaces_database, one, two) as connection:
        await connection.execute(
            "UPDATE lead_activities SET tenant_id = $1 WHERE tenant_id = $2", one.id, two.id
        )
        checks = await checked(spaces_database)
    assert untrue(checks) == {"child rows": False}
    finding = only(checks["child rows"])
    assert (finding["wrong"], finding["row_ids"]) == ("another tenant", [f"{two.lead}/0"])


async def test_search_vectors_that_are_stale_or_null(spaces_database: Database, chunk: int) -> None:
    one, two, three = Tenant(), Tenant(), Tenant()
    async with planting(spaces_database, one, two, three) as connection:
        await connection.execute("ALTER TABLE leads DISABLE TRIGGER search_vector_follows")
        await connection.execute("UPDATE leads SET name = 'Grace' WHERE id = $1", one.lead)
        await connection.execute("UPDATE leads SET search_vector = NULL WHERE id = $1", two.lead)
        await connection.execute("ALTER TABLE leads ENABLE TRIGGER search_vector_follows")
        checks = await checked(spaces_database)
        assert untrue(checks) == {"search vectors": False}
        finding = only(checks["search vectors"])
        assert (finding["stale"], finding["stale_row_ids"]) == (1, [str(one.lead)])
        assert (finding["null"], finding["null_row_ids"]) == (1, [str(two.lead)])
        assert "Grace" not in str(checks)
        # Nothing was written, and nothing is left behind.
        assert await connection.fetchval("SELECT count(*) FROM leads WHERE search_vector IS NULL") == 1
        assert await connection.fetchval("SELECT count(*) FROM pg_class WHERE relpersistence = 't'") == 0


FUNCTION = """
CREATE FUNCTION find_leads() RETURNS trigger LANGUAGE plpgsql {definer} AS $$ BEGIN
    {side} NEW.search_vector := to_tsvector('pg_catalog.english', coalesce(NEW.name, '') || TG_TABLE_NAME);
    RETURN NEW;
END $$;
DROP TRIGGER search_vector_follows ON leads;
CREATE TRIGGER finds BEFORE INSERT OR UPDATE OF name ON leads FOR EACH ROW
    WHEN (NEW.status IS DISTINCT FROM 'hidden FOR EACH ROW ') EXECUTE FUNCTION find_leads();
ALTER TABLE leads ENABLE ALWAYS TRIGGER finds;
UPDATE leads SET name = 'Ada';
"""


async def test_vectors_that_a_function_of_the_application_makes(spaces_database: Database) -> None:
    one, two = Tenant(), Tenant()
    async with planting(spaces_database, one, two) as connection:
        await connection.execute(FUNCTION.format(side="", definer=""))
        checks = await checked(spaces_database)
        assert untrue(checks) == {}
        assert only(checks["search vectors"])["triggers"] == ["finds"]
        await connection.execute("UPDATE leads SET search_vector = 'other' WHERE id = $1", two.lead)
        checks = await checked(spaces_database)
        assert untrue(checks) == {"search vectors": False}
        assert only(checks["search vectors"])["stale_row_ids"] == [str(two.lead)]


@pytest.mark.parametrize(
    ("side", "definer"),
    [
        ("INSERT INTO pages SELECT * FROM pages;", ""),
        ("UPDATE pages SET title = 'written';", "SECURITY DEFINER"),
        ("PERFORM nextval('crossfade.batch_id_seq');", "SECURITY DEFINER"),
    ],
)
async def test_what_else_a_trigger_would_write_is_refused_and_told(
    spaces_database: Database, side: str, definer: str
) -> None:
    one = Tenant()
    async with planting(spaces_database, one) as connection:
        await connection.execute(FUNCTION.format(side="", definer=definer))
        made = FUNCTION.format(side=side, definer=definer).partition("DROP TRIGGER")[0]
        await connection.execute(made.replace("CREATE", "CREATE OR REPLACE", 1))
        before = await connection.fetchval("SELECT last_value FROM crossfade.batch_id_seq")
        checks = await checked(spaces_database)
        assert untrue(checks) == {"search vectors": None}
        assert (
            "trigger finds on a temporary copy: PostgreSQL refuses (25006" in checks["search vectors"].detail
        )
        assert await connection.fetch("SELECT title FROM pages") == [("T",)]
        assert await connection.fetchval("SELECT last_value FROM crossfade.batch_id_seq") == before


async def test_a_generated_vector_is_never_stale_and_may_be_null(spaces_database: Database) -> None:
    one = Tenant()
    async with planting(spaces_database, one) as connection:
        await connection.execute(
            "ALTER TABLE pages ADD found tsvector GENERATED ALWAYS AS "
            "(to_tsvector('pg_catalog.simple', title || status)) STORED"
        )
        checks = await checked(spaces_database)
        assert untrue(checks) == {"search vectors": False}
        finding = next(one for one in checks["search vectors"].findings if one["table"] == "pages")
        assert (finding["made_by"], finding["null"], finding["stale"]) == ("generated", 1, None)
        assert finding["null_row_ids"] == [str(one.page)]
        await connection.execute("UPDATE pages SET status = 'new'")
        assert untrue(await checked(spaces_database)) == {}


@pytest.mark.parametrize(
    ("trigger", "answer", "told"),
    [
        ("", True, "no trigger makes it"),
        ("BEFORE UPDATE ON pages FOR EACH ROW", None, "trigger made is no BEFORE INSERT"),
        ("AFTER INSERT ON pages FOR EACH ROW", None, "trigger made is no BEFORE INSERT"),
    ],
)
async def test_how_a_vector_is_made_that_cannot_be_made_anew(
    spaces_database: Database, trigger: str, answer: bool | None, told: str
) -> None:
    one = Tenant()
    async with planting(spaces_database, one) as connection:
        await connection.execute("ALTER TABLE pages ADD found tsvector; UPDATE pages SET found = 'x'")
        if trigger:
            await connection.execute(
                "CREATE FUNCTION make() RETURNS trigger LANGUAGE plpgsql AS "
                "'BEGIN NEW.found := to_tsvector(NEW.title); RETURN NEW; END'; "
                f"CREATE TRIGGER made {trigger} EXECUTE FUNCTION make()"
            )
        check = (await checked(spaces_database))["search vectors"]
    assert check.ok is answer
    assert told in check.detail


DUPLICATES: Sequence[tuple[str, str, str]] = [
    # what makes them possible, the table, and why they are
    (
        "ALTER TABLE users DROP CONSTRAINT unique_email_per_tenant, "
        "ADD CONSTRAINT unique_email_per_tenant UNIQUE (tenant_id, email) DEFERRABLE",
        "INSERT INTO users (id, tenant_id, email) SELECT gen_random_uuid(), tenant_id, email FROM users",
        "deferrable",
    ),
    (
        "ALTER TABLE users DROP CONSTRAINT unique_email_per_tenant, ADD CONSTRAINT unique_email_per_tenant "
        "UNIQUE NULLS NOT DISTINCT (tenant_id, email, name) DEFERRABLE",
        "INSERT INTO users (id, tenant_id, email) SELECT gen_random_uuid(), tenant_id, email FROM users",
        "deferrable",
    ),
    (
        "ALTER TABLE lead_activities DROP CONSTRAINT lead_activities_pkey",
        "INSERT INTO lead_activities SELECT * FROM lead_activities",
        "no unique index",
    ),
    (
        "ALTER TABLE lead_activities DROP CONSTRAINT lead_activities_pkey; "
        "CREATE INDEX ON lead_activities (position, lead_id)",
        "INSERT INTO lead_activities SELECT * FROM lead_activities",
        "no unique index",
    ),
    (
        "ALTER TABLE lead_activities DROP CONSTRAINT lead_activities_pkey, "
        "ADD PRIMARY KEY (lead_id, position) DEFERRABLE",
        "INSERT INTO lead_activities SELECT * FROM lead_activities",
        "deferrable",
    ),
]


@pytest.mark.parametrize(("ddl", "double", "why"), DUPLICATES)
async def test_equal_rows_that_nothing_refused(
    spaces_database: Database, chunk: int, ddl: str, double: str, why: str
) -> None:
    one = Tenant()
    async with planting(spaces_database, one) as connection:
        await connection.execute(ddl)
        before = await checked(spaces_database)
        assert untrue(before) == ({} if why == "deferrable" else {"uniqueness": False})
        await connection.execute(double)
        checks = await checked(spaces_database)
    assert untrue(checks) == {"uniqueness": False}
    finding = only(checks["uniqueness"])
    assert (finding["why"], finding["rows"], len(finding["row_ids"])) == (why, 2, 2)
    assert "ada@example.org" not in str(checks)
    counted = {finding["table"]: finding["rows"] for finding in checks["rows"].findings}
    assert counted[finding["table"]] == 2  # a chunk that ends between equal keys loses neither


@pytest.mark.parametrize("ready", [True, False])
@pytest.mark.parametrize(
    ("index", "rows"),
    [
        ("(slug)", 2),
        ("(lower(title))", 2),
        ("(slug) WHERE status IS NULL", 2),
        ("(slug) WHERE status IS NOT NULL", 0),
        ("(status)", 0),
        ("(status) NULLS NOT DISTINCT", 2),
    ],
)
async def test_a_unique_index_that_is_not_valid(
    spaces_database: Database, ready: bool, index: str, rows: int
) -> None:
    """As CREATE UNIQUE INDEX CONCURRENTLY leaves it when it fails: at its first or second step."""
    one, two = Tenant(), Tenant()
    async with planting(spaces_database, one, two) as connection:
        with suppress(asyncpg.UniqueViolationError):
            await connection.execute(f"CREATE UNIQUE INDEX CONCURRENTLY broken ON pages {index}")
        await connection.execute(
            "UPDATE pg_index SET indisvalid = false, indisready = $1 WHERE indexrelid = 'broken'::regclass",
            ready,
        )
        checks = await checked(spaces_database)
        assert untrue(checks) == {"uniqueness": False}
        finding = only(checks["uniqueness"])
        assert (finding["why"], finding["indexes"]) == ("not valid: broken", ["broken"])
        assert (finding["rows"], len(finding["row_ids"])) == (rows, rows)
        assert "REINDEX INDEX CONCURRENTLY broken" in checks["uniqueness"].remedy

"""Rows that refer to rows which are not there, found across all tenants, and how apply's rights are told."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from uuid import UUID, uuid4

import asyncpg
import pytest

from tests.support.schema_database import Database
from tests.support.tenant_rows import Tenant, insert
from worker import prechecks
from worker.errors import SchemaError
from worker.mapping import Mapping, load
from worker.postgres.orphans import Found, find_orphans
from worker.postgres.replication import cascades

pytest_plugins = ["tests.support.schema_fixtures"]
SPACES = load(Path(__file__).parents[2] / "schema/spaces/mapping.yaml")
READER, SYNC = "crossfade_reader", "crossfade_sync"
TABLES = ("tenants", "users", "user_passwords", "pages", "form_configs", "leads", "lead_activities")

BLOG = Mapping.model_validate(
    {
        "version": 1,
        "database": "blog",
        "collections": {
            "authors": {"table": "Authors", "tenant": None, "rest": "rest", "columns": {}},
            "posts": {
                "table": "posts",
                "tenant": None,
                "rest": "rest",
                "columns": {
                    "author": {"type": "uuid", "references": "authors"},
                    "editors": {"type": "uuid[]", "references": "authors"},
                },
                "children": {
                    "comments": {
                        "table": "comments",
                        "parent": "post_id",
                        "position": "position",
                        "rest": "rest",
                        "columns": {"by": {"type": "uuid", "references": "authors"}},
                    }
                },
            },
        },
    }
)
BLOG_SQL = """
CREATE TABLE "Authors" (id uuid PRIMARY KEY, rest jsonb);
CREATE TABLE posts (id uuid PRIMARY KEY, author uuid, editors uuid[], rest jsonb);
CREATE TABLE comments (post_id uuid, position integer, by uuid, rest jsonb, PRIMARY KEY (post_id, position));
GRANT SELECT ON "Authors", posts, comments TO crossfade_reader;
"""


@asynccontextmanager
async def replica(database: Database) -> AsyncIterator[asyncpg.Connection]:
    """A connection that checks no foreign key, as apply's does not."""
    async with database.connect() as connection:
        await connection.execute("SET session_replication_role = replica")
        yield connection


async def found_in(
    database: Database,
    mapping: Mapping = SPACES,
    *,
    role: str = READER,
    limit: int = 10,
    seconds: float = 30,
) -> Found:
    async with database.connect(role) as connection:
        return await find_orphans(connection, mapping, limit=limit, seconds=seconds)


def told(found: Found) -> dict[str, tuple[int, list[str]]]:
    return {str(one.reference): (one.count, list(one.rows)) for one in found.orphans}


async def test_rows_whose_references_are_all_there_are_no_orphans(spaces_database: Database) -> None:
    async with replica(spaces_database) as connection:
        for tenant in (Tenant(), Tenant()):
            for table in TABLES:
                await insert(connection, table, tenant.row(table))
        found = await found_in(spaces_database)
    assert found.orphans == [] and found.not_looked_at == []
    assert found.looked_at == 11  # foreign keys of the schema; the child table's is one of them


async def test_a_foreign_key_that_was_not_enforced_is_told_with_its_rows(spaces_database: Database) -> None:
    """Of two tenants: who looks sees both."""
    one, two = Tenant(), Tenant()
    async with replica(spaces_database) as connection:
        for tenant in (one, two):
            for table in TABLES:
                if table not in ("users", "leads"):
                    await insert(connection, table, tenant.row(table))
        found = await found_in(spaces_database)
        assert told(found) == {
            "user_passwords (user_id) -> users": (2, sorted(str(t.password) for t in (one, two))),
            "pages (author_id) -> users": (2, sorted(str(t.page) for t in (one, two))),
            "lead_activities (lead_id) -> leads": (2, sorted(f"{t.lead}/0" for t in (one, two))),
        }
        found = await found_in(spaces_database, limit=1)
        assert [(one.count, len(one.rows)) for one in found.orphans] == [(2, 1)] * 3


async def test_references_of_the_mapping_need_no_foreign_key(spaces_database: Database) -> None:
    there, gone, post, other = uuid4(), uuid4(), uuid4(), uuid4()
    async with replica(spaces_database) as connection:
        await connection.execute(BLOG_SQL)
        await connection.execute('INSERT INTO "Authors" VALUES ($1)', there)
        posts = "INSERT INTO posts VALUES ($1, $2, $3)"
        await connection.execute(posts, post, there, [there, None, gone, gone])
        await connection.execute(posts, other, gone, [there])
        await connection.execute(posts, uuid4(), None, None)
        comments = "INSERT INTO comments VALUES ($1, $2, $3)"
        await connection.execute(comments, post, 0, there)
        await connection.execute(comments, post, 1, gone)
        await connection.execute(comments, gone, 0, None)
        found = await found_in(spaces_database, BLOG)
    assert told(found) == {
        'posts (author) -> "Authors"': (1, [str(other)]),
        'posts (editors) -> "Authors"': (1, [str(post)]),
        'comments (by) -> "Authors"': (1, [f"{post}/1"]),
        "comments (post_id) -> posts": (1, [f"{gone}/0"]),
    }
    assert found.looked_at == 4


async def test_a_foreign_key_to_a_table_that_is_not_mapped(spaces_database: Database) -> None:
    async with replica(spaces_database) as connection:
        await connection.execute(
            BLOG_SQL + 'CREATE SCHEMA more; CREATE TABLE more.places (country text, "a""b" integer, '
            'UNIQUE (country, "a""b")); ALTER TABLE posts ADD country text, ADD "a""b" integer, '
            'ADD FOREIGN KEY (country, "a""b") REFERENCES more.places (country, "a""b")'
        )
        dangling = uuid4()
        await connection.execute('INSERT INTO posts (id, country, "a""b") VALUES ($1, \'x\', 1)', dangling)
        await connection.execute("INSERT INTO posts (id, country) VALUES ($1, 'x')", uuid4())
        unseen = await found_in(spaces_database, BLOG)
        assert unseen.not_looked_at == [
            'posts (country, a"b) -> more.places: crossfade_reader does not see all rows of more.places'
        ]
        await connection.execute("GRANT USAGE ON SCHEMA more TO crossfade_reader")
        await connection.execute("GRANT SELECT ON more.places TO crossfade_reader")
        assert told(await found_in(spaces_database, BLOG)) == {
            'posts (country, a"b) -> more.places': (1, [str(dangling)])
        }


@pytest.mark.parametrize(
    "ddl",
    [
        "DROP POLICY crossfade_reader ON users",
        "REVOKE SELECT ON users FROM crossfade_reader",
        "CREATE POLICY less ON users AS RESTRICTIVE USING (email <> '')",
    ],
)
async def test_a_role_that_does_not_see_every_row_finds_no_false_peace(
    spaces_database: Database, ddl: str
) -> None:
    async with replica(spaces_database) as connection:
        await connection.execute(ddl)
        found = await found_in(spaces_database)
    assert found.not_looked_at and all("does not see all rows of users" in one for one in found.not_looked_at)
    assert found.looked_at + len(found.not_looked_at) == 11


async def test_the_sync_role_sees_too_little_to_look(spaces_database: Database) -> None:
    found = await found_in(spaces_database, role=SYNC)
    assert found.looked_at == 0 and len(found.not_looked_at) == 11


async def test_a_search_that_takes_too_long_is_told_and_the_others_go_on(spaces_database: Database) -> None:
    async with replica(spaces_database) as connection:
        await connection.execute(
            BLOG_SQL + 'ALTER TABLE "Authors" RENAME TO slow; CREATE VIEW "Authors" AS '
            "SELECT id, rest FROM slow WHERE pg_sleep(5) IS NOT NULL; "
            'GRANT SELECT ON "Authors", slow TO crossfade_reader'
        )
        await connection.execute("INSERT INTO slow VALUES ($1)", uuid4())
        await connection.execute("INSERT INTO posts VALUES ($1, $2, $3)", uuid4(), uuid4(), [uuid4()])
    found = await found_in(spaces_database, BLOG, seconds=0.3)
    assert found.not_looked_at == [
        'posts (author) -> "Authors": took longer than 0.3 s',
        'posts (editors) -> "Authors": took longer than 0.3 s',
    ]
    assert found.looked_at == 2


async def test_a_table_that_is_missing_is_named(spaces_database: Database) -> None:
    with pytest.raises(SchemaError, match="the database lacks Authors, posts, comments"):
        await found_in(spaces_database, BLOG)


async def test_cascades_matter_only_where_foreign_keys_see_apply(spaces_database: Database) -> None:
    cascade = (
        "ALTER TABLE pages DROP CONSTRAINT pages_author_id_fkey, ADD CONSTRAINT of_author FOREIGN KEY "
        "(author_id) REFERENCES users ON DELETE CASCADE; ALTER TABLE lead_activities DROP CONSTRAINT "
        "lead_activities_lead_id_fkey, ADD FOREIGN KEY (lead_id) REFERENCES leads ON DELETE CASCADE"
    )
    async with replica(spaces_database) as connection:
        await connection.execute("SET ROLE crossfade_sync")
        for wanted in ("auto", "replica", "origin"):
            assert (await prechecks.replication_role(connection, SPACES, wanted)).ok
        await connection.execute("RESET ROLE")
        await connection.execute(cascade)
        await connection.execute("SET ROLE crossfade_sync")
        assert await cascades(connection, SPACES) == ["pages (of_author)"]
        assert (await prechecks.replication_role(connection, SPACES, "auto")).ok
        check = await prechecks.replication_role(connection, SPACES, "origin")
        assert check.ok is False and "pages (of_author)" in check.detail


@pytest.mark.parametrize("role", ["replica", "origin"])
async def test_what_a_cascade_does_to_a_row_whose_document_is_there(
    spaces_database: Database, role: str
) -> None:
    """The reason of the check above: as replica a delete leaves what refers to it, else it goes along."""
    tenant = Tenant()
    async with replica(spaces_database) as connection:
        await connection.execute(
            "ALTER TABLE pages DROP CONSTRAINT pages_author_id_fkey, "
            "ADD FOREIGN KEY (author_id) REFERENCES users ON DELETE CASCADE"
        )
        for table in ("tenants", "users", "pages"):
            await insert(connection, table, tenant.row(table))
        await connection.execute(f"SET session_replication_role = {role}")
        await connection.execute("DELETE FROM users")
        left: list[UUID] = [row[0] for row in await connection.fetch("SELECT id FROM pages")]
    assert left == ([tenant.page] if role == "replica" else [])

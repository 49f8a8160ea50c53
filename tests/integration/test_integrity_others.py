"""`crossfade check --integrity` of other applications than Spaces, and what MongoDB has beside their rows."""

from __future__ import annotations

from pathlib import Path
from uuid import UUID, uuid4

import pytest
from bson import ObjectId
from motor.motor_asyncio import AsyncIOMotorClient

from tests.support.integrity import checked, only, untrue
from tests.support.schema_database import Database
from worker.mapping import row_id

pytest_plugins = ["tests.support.schema_fixtures"]

SHOP = """
version: 1
database: NAME
collections:
  companies: {table: companies, tenant: {path: _id, column: id}, rest: rest, columns: {}}
  events:
    table: Events
    tenant: {path: of.company, column: company_id}
    rest: rest
    columns:
      title: {type: text}
      seen_by: {type: "uuid[]", references: companies}
    children:
      parts:
        table: parts
        parent: event_id
        position: position
        tenant: company_id
        rest: rest
        columns: {}
        children:
          marks:
            table: marks
            parent: [event_id, part]
            position: position
            tenant: company_id
            rest: rest
            columns: {}
  notes:
    table: notes
    tenant: {parent: {collection: events, path: event}, column: company_id}
    rest: rest
    columns: {}
  fixed: {table: fixed, tenant: {constant: house, column: company_id}, rest: rest, columns: {}}
  words: {table: words, tenant: null, rest: rest, columns: {}}
"""
SHOP_SQL = """
CREATE TABLE companies (id uuid PRIMARY KEY, rest jsonb);
CREATE TABLE "Events" (id uuid PRIMARY KEY, company_id uuid, title text, seen_by uuid[], rest jsonb,
    found tsvector) PARTITION BY HASH (id);
CREATE TABLE events_0 PARTITION OF "Events" FOR VALUES WITH (MODULUS 2, REMAINDER 0);
CREATE TABLE events_1 PARTITION OF "Events" FOR VALUES WITH (MODULUS 2, REMAINDER 1);
CREATE TRIGGER finds BEFORE INSERT OR UPDATE ON "Events" FOR EACH ROW EXECUTE FUNCTION
    tsvector_update_trigger(found, 'pg_catalog.simple', title);
CREATE TABLE parts (event_id uuid, position integer, company_id uuid, rest jsonb,
    PRIMARY KEY (event_id, position));
CREATE TABLE marks (event_id uuid, part integer, position integer, company_id uuid, rest jsonb,
    PRIMARY KEY (position, event_id, part));
CREATE TABLE notes (id uuid PRIMARY KEY, company_id uuid, rest jsonb);
CREATE TABLE fixed (id uuid PRIMARY KEY, company_id uuid, rest jsonb);
CREATE TABLE words (id uuid PRIMARY KEY, rest jsonb);
GRANT SELECT ON companies, "Events", parts, marks, notes, fixed, words TO crossfade_reader;
"""


async def test_another_application_with_none_of_these_declared(
    spaces_database: Database, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Partitions, deeper child tables, arrays of references, no foreign key at all; a chunk is two rows."""
    monkeypatch.setattr("worker.postgres.walk.CHUNK", 2)
    mapping = tmp_path / "mapping.yaml"
    mapping.write_text(SHOP.replace("NAME", f"shop_{uuid4().hex[:8]}"))
    companies, events, gone = [uuid4(), uuid4()], [uuid4() for _ in range(7)], uuid4()
    async with spaces_database.connect() as connection:
        await connection.execute(SHOP_SQL)
        for company in companies:
            await connection.execute("INSERT INTO companies VALUES ($1)", company)
        for n, event in enumerate(events):
            company = companies[n % 2]
            await connection.execute(
                """INSERT INTO "Events" (id, company_id, title, seen_by) VALUES ($1, $2, 'A b', $3)""",
                event,
                company,
                companies,
            )
            await connection.execute("INSERT INTO parts VALUES ($1, 0, $2), ($1, 1, $2)", event, company)
            await connection.execute(
                "INSERT INTO marks VALUES ($1, 1, 0, $2), ($1, 1, 1, $2)", event, company
            )
        await connection.execute("INSERT INTO words VALUES ($1)", gone)
        await connection.execute("ANALYZE")
        checks = await checked(spaces_database, mapping=mapping)
        assert untrue(checks) == {}
        counted = {one["table"]: one["rows"] for one in checks["rows"].findings}
        assert counted == {
            "companies": 2,
            "Events": 7,
            "parts": 14,
            "marks": 14,
            "notes": 0,
            "fixed": 0,
            "words": 1,
        }
        assert only(checks["search vectors"])["made_by"] == "trigger"
        alone = await checked(spaces_database, mapping=mapping, tenant=companies[1])
        assert {one["table"]: one["rows"] for one in alone["rows"].findings} == {
            "companies": 1,
            "Events": 3,
            "parts": 6,
            "marks": 6,
            "notes": 0,
            "fixed": 0,
        }
        await connection.execute('ALTER TABLE "Events" DISABLE TRIGGER finds')
        await connection.execute("UPDATE \"Events\" SET title = 'c' WHERE id = ANY($1)", events[:3])
        await connection.execute('UPDATE "Events" SET seen_by = $2 WHERE id = $1', events[3], [gone, None])
        await connection.execute("DELETE FROM parts WHERE event_id = $1 AND position = 1", events[4])
        await connection.execute(
            "UPDATE marks SET company_id = $2 WHERE event_id = $1", events[5], companies[0]
        )
        await connection.execute("INSERT INTO notes VALUES ($1, $2)", events[6], gone)
        checks = await checked(spaces_database, mapping=mapping)
        assert untrue(checks) == dict.fromkeys(("orphans", "tenants", "child rows", "search vectors"), False)
        vector = only(checks["search vectors"])
        assert (vector["stale"], sorted(vector["stale_row_ids"])) == (3, sorted(map(str, events[:3])))
        assert only(checks["orphans"])["row_ids"] == [str(events[3])]
        assert only(checks["tenants"])["row_ids"] == [str(events[6])]
        assert {one["wrong"]: sorted(one["row_ids"]) for one in checks["child rows"].findings} == {
            "parent missing": [f"{events[4]}/1/0", f"{events[4]}/1/1"],
            "another tenant": [f"{events[5]}/1/0", f"{events[5]}/1/1"],
        }


async def test_documents_are_counted_beside_rows(spaces_database: Database, tmp_path: Path) -> None:
    name = f"shop_{uuid4().hex[:8]}"
    mapping = tmp_path / "mapping.yaml"
    mapping.write_text(SHOP.replace("NAME", name))
    plain, objectid = uuid4(), ObjectId()
    client = AsyncIOMotorClient(spaces_database.services.mongo_uri, uuidRepresentation="standard")
    try:
        await client[name].companies.insert_many([{"_id": plain}, {"_id": objectid}])
        await client[name].events.insert_many(
            [{"of": {"company": who}} for who in (plain, objectid, row_id(objectid), "c")]
        )
        await client[name].fixed.insert_one({})
        async with spaces_database.connect() as connection:
            await connection.execute(SHOP_SQL)

        async def told(tenant: UUID | None) -> dict[str, tuple[int | None, str | None]]:
            findings = (await checked(spaces_database, mapping=mapping, tenant=tenant))["rows"].findings
            return {
                one["collection"]: (one["documents"], one["documents_are"])
                for one in findings
                if "collection" in one
            }

        assert await told(None) == {
            "companies": (2, "estimated"),
            "events": (4, "estimated"),
            "notes": (0, "estimated"),
            "fixed": (1, "estimated"),
            "words": (0, "estimated"),
        }
        for tenant, companies, events, fixed in (
            (plain, 1, 1, 0),
            (row_id(objectid), 1, 2, 0),
            (row_id("house"), None, None, 1),
        ):
            kind = "exact" if events else None
            assert await told(tenant) == {
                "companies": (companies, kind),
                "events": (events, kind),
                "notes": (None, None),
                "fixed": (fixed, "exact"),
            }
    finally:
        await client.drop_database(name)
        client.close()


async def test_one_tenants_documents_in_databases_of_its_name(
    spaces_database: Database, tmp_path: Path
) -> None:
    prefix = f"shop_{uuid4().hex[:8]}"
    mapping = tmp_path / "mapping.yaml"
    mapping.write_text(
        f'version: 1\ndatabase: "{prefix}_{{tenant}}"\ncollections:\n  words: '
        "{table: words, tenant: {name: database, column: company_id}, rest: rest, columns: {}}\n"
    )
    client = AsyncIOMotorClient(spaces_database.services.mongo_uri, uuidRepresentation="standard")
    try:
        await client[f"{prefix}_a"].words.insert_many([{}, {}])
        await client[f"{prefix}_b"].words.insert_one({})
        async with spaces_database.connect() as connection:
            await connection.execute(
                "CREATE TABLE words (id uuid PRIMARY KEY, company_id uuid, rest jsonb); "
                "GRANT SELECT ON words TO crossfade_reader"
            )
        for tenant, documents in ((None, 3), (row_id("a"), 2), (row_id("b"), 1), (uuid4(), 0)):
            checks = await checked(spaces_database, mapping=mapping, tenant=tenant)
            assert untrue(checks) == {}
            assert only(checks["rows"])["documents"] == documents
    finally:
        for name in ("a", "b"):
            await client.drop_database(f"{prefix}_{name}")
        client.close()

"""The oracle finds every kind of planted corruption, and nothing in equal databases."""

from __future__ import annotations

import json
import re
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any
from uuid import UUID, uuid4

import asyncpg
import pytest
import pytest_asyncio
from bson import Decimal128, ObjectId, json_util
from bson.binary import UuidRepresentation
from motor.motor_asyncio import AsyncIOMotorClient

from examples.spaces.generate import Generator
from examples.spaces.oracle import Comparison, compare
from tests.support.schema_database import Database
from worker.embedded import Services

pytest_plugins = ["tests.support.schema_fixtures"]

DOCUMENTS = 1500
TABLES = {"passwords": "user_passwords", "forms": "form_configs"}
RENAMED = {"_id": "id", "hash": "password_hash", "at": "occurred_at", "by": "actor_id"}
CANONICAL = json_util.JSONOptions(
    json_mode=json_util.JSONMode.CANONICAL, uuid_representation=UuidRepresentation.STANDARD
)


def _column(field: str) -> str:
    return RENAMED.get(field) or re.sub("[A-Z]", lambda letter: f"_{letter[0].lower()}", field)


def _id(value: Any) -> Any:
    """Write an ObjectId's 96 bits around a UUIDv8's version and variant, as text."""
    if not isinstance(value, ObjectId):
        return value
    bits = f"{int(str(value), 16):096b}"
    return UUID(
        int=int(f"{bits[:48]}1000{bits[48:60]}10{bits[60:]}00", 2) << 24 | int.from_bytes(b"xfo", "big")
    )


def _plain(value: Any, path: str, notes: dict[str, Any]) -> Any:
    if isinstance(value, dict):
        return {name: _plain(item, f"{path}.{name}", notes) for name, item in value.items()}
    if isinstance(value, list):
        return [_plain(item, f"{path}.{at}", notes) for at, item in enumerate(value)]
    if isinstance(value, datetime | Decimal128 | UUID | ObjectId):
        notes[path] = value
        return value.isoformat() if isinstance(value, datetime) else str(value)
    return value


def _fill(document: dict[str, Any], types: dict[str, str], row: dict[str, Any]) -> dict[str, Any]:
    """Put a document's fields into the columns named like them and the rest into ``rest``."""
    rest: dict[str, Any] = {}
    notes: dict[str, Any] = {}
    for field, value in document.items():
        column = _column(field)
        if field == "activities":
            if not value:
                notes[field] = value
        elif column not in types or column in ("rest", "position"):
            rest[field] = value
        elif value is None:
            notes[field] = None
        elif types[column] == "jsonb":
            row[column] = json.dumps(_plain(value, field, notes))
        else:
            row[column] = _id(value)
    if notes:
        rest["$notes"] = notes
    row["rest"] = json_util.dumps(rest, json_options=CANONICAL) if rest else None
    return row


class Inserter:
    """Writes documents as rows: a small program of its own, that knows the columns from the catalogue."""

    def __init__(self, connection: asyncpg.Connection) -> None:
        self._connection = connection
        self._types: dict[str, dict[str, str]] = {}

    async def insert(self, collection: str, documents: list[dict[str, Any]]) -> None:
        types = await self._types_of(TABLES.get(collection, collection))
        await self._write(TABLES.get(collection, collection), [_fill(d, types, {}) for d in documents])
        types = await self._types_of("lead_activities")
        await self._write(
            "lead_activities",
            [
                _fill(activity, types, {"lead_id": d["_id"], "tenant_id": d["tenantId"], "position": at})
                for d in documents
                for at, activity in enumerate(d.get("activities") or [])
            ],
        )

    async def _types_of(self, table: str) -> dict[str, str]:
        if table not in self._types:
            query = """SELECT column_name, data_type FROM information_schema.columns
                WHERE table_name = $1 AND data_type <> 'tsvector'"""
            self._types[table] = dict(await self._connection.fetch(query, table))
        return self._types[table]

    async def _write(self, table: str, rows: list[dict[str, Any]]) -> None:
        types = await self._types_of(table)
        records = [tuple(row.get(column) for column in types) for row in rows]
        await self._connection.copy_records_to_table(table, records=records, columns=list(types))


@dataclass
class Both:
    mongo: Any
    postgres: asyncpg.Connection

    async def compare(self) -> Comparison:
        return await compare(self.mongo, self.postgres)

    async def kinds(self) -> set[tuple[str, Any, str]]:
        found = await self.compare()
        assert not found.equal
        assert found.differing == len(found.differences)
        return {(difference.collection, difference.id, difference.kind) for difference in found.differences}

    async def paths(self) -> set[str]:
        return {path for difference in (await self.compare()).differences for path in difference.paths}


@asynccontextmanager
async def _mongo(services: Services) -> AsyncIterator[Any]:
    client: Any = AsyncIOMotorClient(services.mongo_uri, uuidRepresentation="standard", tz_aware=True)
    name = f"oracle_{uuid4().hex[:12]}"
    try:
        yield client[name]
    finally:
        await client.drop_database(name)
        client.close()


@pytest_asyncio.fixture
async def both(services: Services, spaces_database: Database) -> AsyncIterator[Both]:
    """The same documents in MongoDB and as rows."""
    async with _mongo(services) as mongo, spaces_database.connect() as connection:
        await Generator(11).load(mongo, 8, DOCUMENTS)
        # No foreign keys and no triggers: the tests break what these would guard.
        await connection.execute("SET session_replication_role = replica")
        inserter = Inserter(connection)
        batches: dict[str, list[dict[str, Any]]] = {}
        for name, document in Generator(11).documents(8, DOCUMENTS):
            batches.setdefault(name, []).append(document)
        for name, documents in batches.items():
            await inserter.insert(name, documents)
        yield Both(mongo, connection)


async def test_equal_databases_are_equal(both: Both) -> None:
    seen: list[int] = []
    found = await compare(both.mongo, both.postgres, on_progress=seen.append)
    assert found.differences == []
    assert found.equal
    assert found.documents == DOCUMENTS == seen[-1]
    assert found.rows == DOCUMENTS + await both.postgres.fetchval("SELECT count(*) FROM lead_activities")


async def test_every_missing_and_extra_row_is_found(both: Both) -> None:
    page = await both.mongo.pages.find_one()
    user = await both.mongo.users.find_one()
    extra_page, extra_lead = ObjectId(), uuid4()
    await both.postgres.execute("DELETE FROM pages WHERE id = $1", _id(page["_id"]))
    await both.postgres.execute("DELETE FROM users WHERE id = $1", user["_id"])
    await both.postgres.execute(
        "INSERT INTO pages (id, tenant_id, title, slug) VALUES ($1, $2, 't', 's')",
        _id(extra_page),
        page["tenantId"],
    )
    await both.postgres.execute(
        "INSERT INTO leads (id, tenant_id) VALUES ($1, $2)", extra_lead, page["tenantId"]
    )
    assert await both.kinds() == {
        ("pages", page["_id"], "missing"),
        ("users", user["_id"], "missing"),
        ("pages", extra_page, "extra"),
        ("leads", extra_lead, "extra"),
    }


async def test_rows_of_another_tenant_are_found(both: Both) -> None:
    one, two = await both.mongo.tenants.find().to_list(2)
    form = await both.mongo.forms.find_one({"tenantId": one["_id"]})
    lead = await both.mongo.leads.find_one({"tenantId": one["_id"], "activities.2": {"$exists": True}})
    await both.postgres.execute(
        "UPDATE form_configs SET tenant_id = $2 WHERE id = $1", _id(form["_id"]), two["_id"]
    )
    await both.postgres.execute(
        "UPDATE lead_activities SET tenant_id = $2 WHERE lead_id = $1 AND position = 2",
        lead["_id"],
        two["_id"],
    )
    assert await both.kinds() == {("forms", form["_id"], "tenant"), ("leads", lead["_id"], "tenant")}
    assert await both.paths() == {"tenantId", "activities.2.tenantId"}


async def test_child_rows_without_a_parent_are_found(both: Both) -> None:
    lead = await both.mongo.leads.find_one({"activities.0": {"$exists": True}})
    stray = uuid4()
    await both.postgres.execute("DELETE FROM leads WHERE id = $1", lead["_id"])
    await both.postgres.execute(
        "INSERT INTO lead_activities (lead_id, tenant_id, position) VALUES ($1, $2, 0)",
        stray,
        lead["tenantId"],
    )
    assert await both.kinds() == {
        ("leads", lead["_id"], "missing"),
        ("leads", lead["_id"], "orphan"),
        ("leads", stray, "orphan"),
    }


@pytest.mark.parametrize(
    ("change", "path"),
    [
        ("UPDATE leads SET score = score + 1e-9 WHERE id = $1", "score"),
        ("UPDATE leads SET score = NULL WHERE id = $1", "score"),
        ("UPDATE leads SET name = name || chr(8203) WHERE id = $1", "name"),
        ("UPDATE leads SET updated_at = updated_at + interval '1 us' WHERE id = $1", "updatedAt"),
        ("UPDATE leads SET form_id = gen_random_uuid() WHERE id = $1", "formId"),
        ("UPDATE leads SET phone = '1' WHERE id = $1", "phone"),
        ("UPDATE leads SET source = '' WHERE id = $1", "source"),
        ("UPDATE leads SET data = data - 'when' WHERE id = $1", "data.when"),
        ("""UPDATE leads SET data = data || '{"when": "2026"}' WHERE id = $1""", "data.when"),
        ("""UPDATE leads SET data = data || '{"n": 5}' WHERE id = $1""", "data.n"),
        ("""UPDATE leads SET data = data || '{"list": [1]}' WHERE id = $1""", "data.list.1"),
        ("UPDATE leads SET data = NULL WHERE id = $1", "data"),
        ("UPDATE leads SET rest = rest - 'extra' WHERE id = $1", "extra"),
        ("UPDATE leads SET rest = rest - '$notes' WHERE id = $1", "phone"),
        ("UPDATE leads SET rest = '[1]' WHERE id = $1", "rest"),
        ("DELETE FROM lead_activities WHERE lead_id = $1", "activities"),
        ("DELETE FROM lead_activities WHERE lead_id = $1 AND position = 1", "activities.1"),
        ("DELETE FROM lead_activities WHERE lead_id = $1 AND position = 0", "activities.position"),
        ("UPDATE lead_activities SET note = NULL WHERE lead_id = $1", "activities.0.note"),
        ("UPDATE lead_activities SET rest = NULL WHERE lead_id = $1", "activities.0.meta.until"),
        ("UPDATE lead_activities SET position = 7 - 5 * position WHERE lead_id = $1", "activities.1.type"),
    ],
)
async def test_a_changed_value_is_found_at_its_path(both: Both, change: str, path: str) -> None:
    # Given a lead that has a value of every kind.
    tenant = await both.mongo.tenants.find_one()
    form = await both.mongo.forms.find_one()
    now = datetime(2026, 2, 3, 4, 5, 6, 789000, UTC)
    lead = {
        "_id": uuid4(), "tenantId": tenant["_id"], "formId": form["_id"], "name": "ו🚀", "phone": None,
        "score": 1.5, "data": {"when": now, "n": 5.0, "list": [1, 2], "money": Decimal128("1.10")},
        "activities": [{"type": "call", "at": now, "note": "n", "meta": {"until": now}}, {"type": "visit"}],
        "updatedAt": now, "extra": {"when": now},
    }  # fmt: skip
    await both.mongo.leads.insert_one(lead)
    await Inserter(both.postgres).insert("leads", [lead])
    assert (await both.compare()).equal
    # When one thing of it changes, it alone is found, and where.
    await both.postgres.execute(change, lead["_id"])
    assert await both.kinds() == {("leads", lead["_id"], "different")}
    assert path in await both.paths()


async def test_no_more_differences_are_kept_than_asked_for_but_all_are_counted(both: Both) -> None:
    users = await both.mongo.users.count_documents({})
    await both.postgres.execute("UPDATE users SET login_count = login_count + 1")
    found = await compare(both.mongo, both.postgres, limit=5)
    assert len(found.differences) == 5
    assert found.differing == users


async def test_the_reader_role_sees_all_tenants(both: Both, spaces_database: Database) -> None:
    async with spaces_database.connect("crossfade_reader") as connection:
        assert (await compare(both.mongo, connection)).equal

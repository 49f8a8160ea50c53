"""Rows born in PostgreSQL get ids that the way back can name, by a default that `finish` takes away again."""

from __future__ import annotations

from pathlib import Path
from uuid import UUID, uuid4

import asyncpg
from bson import ObjectId

from tests.support.schema_dump import schema_dump
from tests.support.tables import target
from tests.support.way_back import application, brought_back, set_phase
from tests.support.world import World, once, world
from worker.embedded import Services

_COLLECTION = """
  {name}:
    table: {name}
    tenant: {{path: tenantId, column: tenant_id}}
    rest: rest
    columns:
      n: {{type: bigint}}
"""
_REST = "tenant_id uuid NOT NULL, n bigint, rest jsonb"
# Of ObjectIds, the second with a default of its own, and of UUIDs.
TABLES = {
    "orders": f"id uuid PRIMARY KEY, {_REST}",
    "notes": f"id uuid PRIMARY KEY DEFAULT gen_random_uuid(), {_REST}",
    "people": f"id uuid PRIMARY KEY, {_REST}",
}


async def fill(w: World, tenant: UUID) -> None:
    for name, new in (("orders", ObjectId), ("notes", ObjectId), ("people", uuid4)):
        await w.mongo[name].insert_many([{"_id": new(), "tenantId": tenant, "n": n} for n in range(5)])


async def defaults(w: World) -> dict[str, str | None]:
    """Return the default of each table's id."""
    column = (
        "SELECT column_default FROM information_schema.columns WHERE table_name = $1 AND column_name = 'id'"
    )
    return {name: await w.value(column, name) for name in TABLES}


async def ids_check(w: World, tenant: UUID) -> str:
    """Return what `cutover check` says of ids."""
    _, told = await once(w, "cutover", "check", str(tenant))
    (line,) = [one for one in told.splitlines() if one[7:].startswith("ids ")]
    return line


async def bare(w: World, directory: Path) -> str:
    """Make a database with the application's tables alone; return its name."""
    name = f"{w.name}_bare"
    admin = await asyncpg.connect(w.services.postgres_admin_dsn)
    await admin.execute(f'CREATE DATABASE "{name}"')
    await admin.close()
    connection = await asyncpg.connect(w.services.dsn("postgres", name))
    await connection.execute((directory / "001_tables.sql").read_text())
    await connection.execute("DROP OWNED BY crossfade_sync, crossfade_reader")
    await connection.close()
    return name


async def test_rows_born_in_postgresql_get_objectids_until_finish(services: Services, tmp_path: Path) -> None:
    mapping = "version: 1\ndatabase: NAME\ncollections:" + "".join(
        _COLLECTION.format(name=name) for name in TABLES
    )
    tables, tenant = target(tmp_path / "tables", TABLES), uuid4()
    async with world(services, tmp_path, mapping, tables) as w:
        await fill(w, tenant)
        for role in ("publish", "apply", "reverse"):
            await w.start(role, role)
        await w.settled()
        for _ in range(2):  # the second time there is nothing to do
            code, told = await once(w, "cutover", "prepare")
            assert code == 0, told
            own = "ids: notes.id has a default already, gen_random_uuid(), and keeps it"
            assert own in told, told
        assert await defaults(w) == {
            "orders": "crossfade.objectid_uuid()",
            "notes": "gen_random_uuid()",
            "people": None,
        }
        assert "ok     ids" in (line := await ids_check(w, tenant)), line
        assert "notes.id has default gen_random_uuid(): what is born there has no ObjectId" in line
        await w.execute("ALTER TABLE notes ALTER id DROP DEFAULT")
        assert "FAILED ids" in (line := await ids_check(w, tenant)) and "notes.id has no default" in line
        await w.execute("ALTER TABLE notes ALTER id SET DEFAULT gen_random_uuid()")
        await set_phase(w, "postgres")
        async with application(w, tenant) as sql:
            await sql.execute("INSERT INTO orders (tenant_id, n) VALUES ($1, 77)", tenant)
        await brought_back(w)
        born = await w.mongo["orders"].find_one({"n": 77})
        assert born is not None and isinstance(born["_id"], ObjectId), born
        await w.settled()
        assert await w.unequal() == []
        await set_phase(w, "complete")
        for name in list(w.processes):
            await w.stop(name)
        bare_one = await bare(w, tables)  # while there are the roles that its file names
        code, told = await once(w, "finish", "--dry-run")
        assert "default of orders.id" in told and "default of notes.id" not in told, told
        code, told = await once(w, "finish", "--export", str(tmp_path / "audit"), "--yes")
        assert code == 0, told
        assert await defaults(w) == {"orders": None, "notes": "gen_random_uuid()", "people": None}
        assert await schema_dump(services, w.name) == await schema_dump(services, bare_one)

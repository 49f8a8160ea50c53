"""Tenants whose ids are no UUIDs, and those that a name or the mapping tells, move there and back as well."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any
from uuid import UUID

import pytest
from bson import ObjectId
from pymongo.errors import WriteError

from tests.support.moving import cutover, phase, started
from tests.support.tables import target
from tests.support.way_back import application, brought_back
from tests.support.world import World, once, world
from worker.embedded import Services
from worker.mapping.ids import row_id

MAPPING = """
version: 1
database: NAME
collections:
  things:
    table: things
    tenant: {path: of.tenant, column: tenant_id}
    rest: rest
    columns: {n: {type: bigint}}
  "{tenant}_orders":
    table: orders
    tenant: {name: collection, column: tenant_id}
    rest: rest
    columns: {n: {type: bigint}}
  config:
    table: config
    tenant: {constant: acme, column: tenant_id}
    rest: rest
    columns: {n: {type: bigint}}
"""
COLUMNS = "id uuid PRIMARY KEY, tenant_id uuid NOT NULL, n bigint, rest jsonb"
ACME, OBJECTID, NUMBER = "acme", ObjectId(), 7
DOCUMENTS = 10


@asynccontextmanager
async def shop(services: Services, directory: Path) -> AsyncIterator[World]:
    """Yield a world in which the three may move; acme has documents in each collection."""
    tables = target(directory / "tables", dict.fromkeys(("things", "orders", "config"), COLUMNS))
    async with world(services, directory, MAPPING, tables) as w:
        w.env["CROSSFADE_RECONCILE_FULL_EVERY"] = "3"
        for tenant in (ACME, OBJECTID, NUMBER):
            await w.mongo["things"].insert_many([thing(tenant, n) for n in range(DOCUMENTS)])
        for name in ("acme_orders", "other_orders", "config"):
            await w.mongo[name].insert_many([{"n": n} for n in range(DOCUMENTS)])
        await started(w)
        yield w


def thing(tenant: Any, n: int) -> dict[str, Any]:
    return {"of": {"tenant": tenant, "n": n}, "n": n}


async def refused(w: World, *writes: tuple[str, dict[str, Any]]) -> None:
    for name, document in writes:
        with pytest.raises(WriteError, match="failed validation"):
            await w.mongo[name].insert_one({**document})
        with pytest.raises(WriteError, match="failed validation"):
            of = {"of.tenant": document["of"]["tenant"]} if "of" in document else {}
            await w.mongo[name].update_one(of, {"$set": {"n": -1}})


async def taken(w: World, *writes: tuple[str, dict[str, Any]]) -> None:
    for name, document in writes:
        await w.mongo[name].insert_one({**document})


async def changed_in_postgresql(w: World, tenant: UUID, *tables: str) -> None:
    async with application(w, tenant) as sql:
        for table in tables:
            assert await sql.execute(f"UPDATE {table} SET n = n + 1000") == f"UPDATE {DOCUMENTS}"
    await brought_back(w)


async def test_they_move_there_and_back(services: Services, tmp_path: Path) -> None:
    async with shop(services, tmp_path) as w:
        acme, objectid, number = (row_id(one) for one in (ACME, OBJECTID, NUMBER))
        of_acme = ("things", thing(ACME, 1)), ("acme_orders", {"n": 1}), ("config", {"n": 1})
        of_others = ("things", thing(OBJECTID, 1)), ("things", thing(NUMBER, 1)), ("other_orders", {"n": 1})

        code, results = await cutover(w, str(acme), "--window", "60")
        assert code == 0, [one["reason"] for one in results]
        await refused(w, *of_acme)
        await taken(w, *of_others)
        await changed_in_postgresql(w, acme, "things", "orders", "config")
        for name, wanted in (("things", {"of.tenant": ACME}), ("acme_orders", {}), ("config", {})):
            assert await w.mongo[name].count_documents(wanted | {"n": {"$gte": 1000}}) == DOCUMENTS, name
        code, told = await once(w, "rollback", str(acme), "--window", "60")
        assert code == 0 and await phase(w, acme) == "mongo", told
        await taken(w, *of_acme)

        code, results = await cutover(w, str(objectid), str(number), "--group", "--window", "60")
        assert code == 0, [one["reason"] for one in results]
        await refused(w, *of_others[:2])
        await taken(w, *of_acme, of_others[2])
        await w.settled()
        assert await w.unequal() == []
        code, results = await cutover(w, str(acme), str(row_id("other")), "--window", "60")
        assert code == 0, [one["reason"] for one in results]
        await _finished(w, tmp_path, acme, objectid, number, row_id("other"))


async def _finished(w: World, directory: Path, *tenants: UUID) -> None:
    await brought_back(w)
    ledger, mine = w.client["crossfade"]["reverse"], {"_id.ns": {"$regex": f"^{w.name}"}}
    assert f"{w.name}.acme_orders" in await ledger.distinct("_id.ns", mine)
    code, told = await once(w, "complete", *map(str, tenants), "--yes")
    assert code == 0, told
    for name in list(w.processes):
        await w.stop(name)
    code, told = await once(w, "finish", "--export", str(directory / "audit"), "--yes")
    assert code == 0, told
    assert await ledger.count_documents(mine) == 0
    for name in ("things", "acme_orders", "other_orders", "config"):
        await w.mongo[name].insert_one(thing(ACME, 1))

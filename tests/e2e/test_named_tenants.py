"""Tenants that are told by a database's or collection's name, by the parent document, or by nobody."""

from __future__ import annotations

import asyncio
import urllib.request
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any
from uuid import UUID

import bson
import pytest
from bson import ObjectId

from tests.support.tables import target
from tests.support.world import PARTITIONS, World, once, world
from worker import failpoints
from worker.embedded import Services
from worker.embedded.state import free_port
from worker.mapping import row_id

ORDERS = (
    "id uuid PRIMARY KEY, tenant_id uuid NOT NULL, customer uuid, total numeric, placed_at timestamptz, "
    "rest jsonb"
)
LINES = (
    "order_id uuid, position integer, tenant_id uuid NOT NULL, sku text, rest jsonb, "
    "PRIMARY KEY (order_id, position)"
)
CUSTOMERS = "id uuid PRIMARY KEY, tenant_id uuid NOT NULL, name text, rest jsonb"

BY_NAME = """
version: 1
database: {database}
collections:
  "{customers}":
    table: customers
    tenant: {{name: {by}, column: tenant_id}}
    rest: rest
    columns:
      name: {{type: text}}
  "{orders}":
    table: orders
    tenant: {{name: {by}, column: tenant_id}}
    rest: rest
    columns:
      customer: {{type: uuid, references: "{customers}"}}
      total: {{type: numeric}}
      placed_at: {{path: placedAt, type: timestamptz}}
    children:
      lines:
        table: lines
        parent: order_id
        position: position
        tenant: tenant_id
        rest: rest
        columns:
          sku: {{type: text}}
"""


def order(n: int, id_: Any) -> dict[str, Any]:
    return {"_id": id_, "customer": n % 5, "total": n, "lines": [{"sku": f"s{n}"}, {"sku": "x", "n": n}]}


def ids(count: int) -> list[Any]:
    """Ids of three types; the first two kinds are the same in every tenant."""
    return [(n, f"order {n}", ObjectId())[n % 3] for n in range(count)]


async def fill(customers: Any, orders: Any, count: int) -> None:
    await customers.insert_many([{"_id": n, "name": f"customer {n}"} for n in range(5)])
    await orders.insert_many([order(n, id_) for n, id_ in enumerate(ids(count))])


@asynccontextmanager
async def writing(collections: list[Any]) -> AsyncIterator[list[int]]:
    """Insert, change and delete in each collection in turn while the block runs; give the count of rounds."""
    rounds, stop = [0], asyncio.Event()

    async def write() -> None:
        while not stop.is_set():
            n = rounds[0]
            orders = collections[n % len(collections)]
            await orders.insert_one(order(n, f"live {n}"))
            await orders.update_one(
                {"_id": f"order {n % 90 // 3 * 3 + 1}"}, {"$set": {"lines.0.sku": f"u{n}"}}
            )
            await orders.update_one({"_id": n % 90 // 3 * 3}, {"$push": {"lines": {"sku": f"p{n}"}}})
            if n % 3 == 0:
                await orders.delete_one({"_id": f"live {n - 30}"})
            rounds[0] += 1
            await asyncio.sleep(0.002)

    running = asyncio.create_task(write())
    try:
        yield rounds
    finally:
        stop.set()
        await running


async def tenants_of(w: World, table: str) -> dict[UUID, int]:
    connection = await w.connect()
    try:
        rows = await connection.fetch(f"SELECT tenant_id, count(*) FROM {table} GROUP BY 1")
        return {row[0]: row[1] for row in rows}
    finally:
        await connection.close()


def named(services: Services, tmp_path: Path, by: str) -> Any:
    if by == "database":
        mapping = BY_NAME.format(database="NAME_{tenant}", customers="customers", orders="orders", by=by)
    else:
        mapping = BY_NAME.format(
            database="NAME", customers="{tenant}_customers", orders="{tenant}_orders", by=by
        )
    tables = target(tmp_path / "shop", {"customers": CUSTOMERS, "orders": ORDERS, "lines": LINES})
    return world(services, tmp_path, mapping, tables)


def collection(w: World, by: str, tenant: str, name: str) -> Any:
    return w.client[f"{w.name}_{tenant}"][name] if by == "database" else w.mongo[f"{tenant}_{name}"]


@pytest.mark.parametrize("by", ["database", "collection"])
async def test_collections_of_many_tenants_are_one_though_publish_dies_between_two_of_them(
    services: Services, tmp_path: Path, by: str
) -> None:
    async with named(services, tmp_path, by) as w:
        logical = f"{w.name}_tenant.orders" if by == "database" else f"{w.name}.tenant_orders"

        def of(tenant: str, name: str) -> Any:
            return collection(w, by, tenant, name)

        for tenant in "abc":
            await fill(of(tenant, "customers"), of(tenant, "orders"), 300)
        await of("a", "other").insert_one({"_id": 1})
        async with writing([of(tenant, "orders") for tenant in "abc"]) as rounds:
            await w.start("apply", "apply")
            # 3 chunks of customers, then 6 of tenant a's orders: it dies in the middle of tenant b's.
            dying = {
                "CROSSFADE_COPY_CHUNK": "50",
                "CROSSFADE_FAILPOINTS": f"{failpoints.COPY_AFTER_CHUNK}=exit:11",
            }
            await w.start("publish", "dying", **dying)
            assert await w.ended("dying") == failpoints.EXIT_CODE
            query = "SELECT copy_cursor FROM crossfade.collection WHERE namespace = $1"
            cursor = bson.decode(await w.value(query, logical))
            assert cursor["ns"] == str(of("b", "orders").full_name)
            await w.start("publish", "publish", CROSSFADE_COPY_CHUNK="50")
            await w.until_value("SELECT count(*) FROM crossfade.collection WHERE copy_state = 'copied'", 2)
            done = rounds[0]
            await w.until("writes after the copy", lambda: rounds[0] > done + 50)
            # A tenant that comes while everything runs, before in order and after.
            for late in ("_first", "zz"):
                await fill(of(late, "customers"), of(late, "orders"), 30)
            await of("zz", "orders").delete_many({"_id": {"$type": "string"}})
            await of("a", "orders").delete_many({"_id": {"$type": "int"}})
        await w.settled()
        assert await w.unequal() == []
        assert await w.value("SELECT count(*) FROM crossfade.dead_letter") == 0
        tenants = ("a", "b", "c", "_first", "zz")
        assert await tenants_of(w, "customers") == {row_id(tenant): 5 for tenant in tenants}
        orders = {row_id(t): await of(t, "orders").count_documents({}) for t in tenants}
        assert await tenants_of(w, "orders") == orders
        assert (await tenants_of(w, "lines")).keys() == orders.keys()
        # The same id in two tenants is two rows, and a reference is to the own tenant's.
        assert (
            await w.value("SELECT count(DISTINCT id) FROM orders WHERE rest->'$notes'->>'_id' = 'order 1'")
            == 4
        )
        assert (
            await w.value(
                """SELECT count(*) FROM orders o LEFT JOIN customers c ON c.id = o.customer
               AND c.tenant_id = o.tenant_id WHERE c.id IS NULL"""
            )
            == 0
        )
        assert await w.value("SELECT copied FROM crossfade.collection WHERE namespace = $1", logical) >= 900


async def test_the_same_objectid_in_two_databases_is_told_and_neither_document_touches_the_other(
    services: Services, tmp_path: Path
) -> None:
    """As where every tenant's database was made from one template."""
    async with named(services, tmp_path, "database") as w:
        shared, alone = ObjectId(), ObjectId()
        first, second = (collection(w, "database", tenant, "customers") for tenant in "ab")
        await first.insert_many([{"_id": shared, "name": "first"}, {"_id": alone, "name": "alone"}])
        await first.database["orders"].insert_one(order(1, ObjectId()))
        await w.start("publish", "publish")
        await w.start("apply", "apply")
        await w.settled()
        await second.insert_one({"_id": shared, "name": "second"})
        await second.update_one({"_id": shared}, {"$set": {"name": "changed"}})
        await second.delete_one({"_id": shared})
        await second.insert_one({"_id": shared, "name": "again"})
        await w.settled()
        kinds = "SELECT count(*) FROM crossfade.dead_letter WHERE state = 'dead' AND kind = 'collision'"
        assert await w.value(kinds) >= 2
        assert await w.value("SELECT name FROM customers WHERE id = $1", row_id(shared)) == "first"
        await first.update_one({"_id": shared}, {"$set": {"name": "mine"}})
        await first.delete_one({"_id": alone})
        await w.settled()
        assert await w.value("SELECT name FROM customers WHERE id = $1", row_id(shared)) == "mine"
        assert await tenants_of(w, "customers") == {row_id("a"): 1}
        assert await w.unequal() == []


async def test_one_pair_of_topics_one_line_of_status_and_labels_for_all_tenants(
    services: Services, tmp_path: Path
) -> None:
    async with named(services, tmp_path, "database") as w:
        for tenant in "ab":
            await fill(
                w.client[f"{w.name}_{tenant}"]["customers"], w.client[f"{w.name}_{tenant}"]["orders"], 9
            )
        code, told = await once(w, "topics", "create")
        assert code == 0 and len(told.splitlines()) == 4, told
        assert f"{w.name}.{w.name}_tenant.orders.copy " in told
        ports = {role: free_port(set()) for role in ("publish", "apply")}
        for role, port in ports.items():
            await w.start(role, role, CROSSFADE_METRICS_PORT=str(port))
        await w.settled()
        for port in ports.values():
            told = await asyncio.to_thread(_metrics, port)
            assert f'collection="{w.name}_tenant.orders"' in told and f"{w.name}_a" not in told
        code, told = await once(w, "status")
        assert code == 0 and f"{w.name}_tenant.orders " in told and f"{w.name}_a." not in told, told
        await w.client[f"{w.name}_a"]["orders"].update_one({"_id": 0}, {"$set": {"total": 5}})
        await w.settled()
        code, told = await once(w, "topics", "print", f"{w.name}.{w.name}_tenant.orders", "--from-beginning")
        assert code == 0 and f"{w.name}_a.orders " in told, told


def _metrics(port: int) -> str:
    with urllib.request.urlopen(f"http://127.0.0.1:{port}/metrics", timeout=10) as reply:
        return reply.read().decode()


async def test_a_name_that_nothing_fits_is_told_at_start(services: Services, tmp_path: Path) -> None:
    async with named(services, tmp_path, "database") as w:
        await w.client[f"{w.name}_a"]["custmers"].insert_one({})
        await w.client[f"{w.name}_a"]["orders"].insert_one({})
        code, told = await once(w, "publish")
        assert code == 2 and "customers (did you mean custmers?)" in told and "orders (" not in told, told


async def test_a_dropped_database_of_one_tenant_is_told_and_its_rows_stay(
    services: Services, tmp_path: Path
) -> None:
    async with named(services, tmp_path, "database") as w:
        for tenant in "ab":
            await fill(
                w.client[f"{w.name}_{tenant}"]["customers"], w.client[f"{w.name}_{tenant}"]["orders"], 9
            )
        await w.start("publish", "publish")
        await w.start("apply", "apply")
        await w.settled()
        await w.client.drop_database(f"{w.name}_a")
        log = tmp_path / "publish.log"
        await w.until("told", lambda: f'"{w.name}_a.orders", "change": "drop"' in log.read_text())
        await w.settled()
        assert await tenants_of(w, "orders") == {row_id("a"): 9, row_id("b"): 9}


@pytest.mark.parametrize("by", ["database", "collection"])
async def test_a_collection_renamed_into_place_is_told_and_a_copy_brings_it(
    services: Services, tmp_path: Path, by: str
) -> None:
    async with named(services, tmp_path, by) as w:
        await fill(collection(w, by, "a", "customers"), collection(w, by, "a", "orders"), 9)
        await w.start("publish", "publish")
        await w.start("apply", "apply")
        await w.settled()
        orders = collection(w, by, "b", "orders")
        loading = orders.database["loading"]
        await loading.insert_many([order(n, id_) for n, id_ in enumerate(ids(9))])
        await loading.rename(orders.name)
        log = tmp_path / "publish.log"
        logical = f"{w.name}_tenant.orders" if by == "database" else f"{w.name}.tenant_orders"
        told = f"renamed to this name: crossfade copy --collection {logical}"
        await w.until("told", lambda: told in log.read_text())
        assert len(await w.unequal()) == 9
        assert (await once(w, "copy", "--collection", logical, "--yes"))[0] == 0
        await w.settled()
        assert await w.unequal() == []
        assert await tenants_of(w, "orders") == {row_id("a"): 9, row_id("b"): 9}


BY_PARENT = """
version: 1
database: NAME
collections:
  projects:
    table: projects
    tenant: {path: owner, column: tenant_id}
    rest: rest
    columns:
      name: {type: text}
  tasks:
    table: tasks
    tenant: {parent: {collection: projects, path: projectId}, column: tenant_id}
    rest: rest
    columns:
      project_id: {path: projectId, type: uuid, references: projects}
      title: {type: text}
    children:
      notes:
        table: notes
        parent: task_id
        position: position
        tenant: tenant_id
        rest: rest
        columns:
          text: {path: $, type: text}
  comments:
    table: comments
    tenant: {parent: {collection: tasks, path: task}, column: tenant_id}
    rest: rest
    columns:
      task: {type: uuid, references: tasks}
  countries:
    table: countries
    tenant: null
    rest: rest
    columns:
      name: {type: text}
  settings:
    table: settings
    tenant: {constant: house, column: tenant_id}
    rest: rest
    columns:
      value: {type: text}
"""
_PLAIN = "id uuid PRIMARY KEY, tenant_id uuid NOT NULL, rest jsonb"
PARENT_TABLES = {
    "projects": f"{_PLAIN}, name text",
    "tasks": f"{_PLAIN}, project_id uuid, title text",
    "notes": "task_id uuid, position integer, tenant_id uuid NOT NULL, text text, rest jsonb, "
    "PRIMARY KEY (task_id, position)",
    "comments": f"{_PLAIN}, task uuid",
    "countries": "id uuid PRIMARY KEY, name text, rest jsonb",
    "settings": f"{_PLAIN}, value text",
}


async def test_documents_wait_for_the_parent_that_tells_their_tenant(
    services: Services, tmp_path: Path
) -> None:
    tables = target(tmp_path / "work", PARENT_TABLES)
    async with world(services, tmp_path, BY_PARENT, tables) as w:
        await w.mongo["projects"].insert_many(
            [{"_id": ObjectId(), "owner": f"owner {n % 3}", "name": f"{n}"} for n in range(30)]
        )
        projects = await w.mongo["projects"].find().to_list(None)
        await w.mongo["tasks"].insert_many(
            [
                {
                    "_id": n,
                    "projectId": projects[n % 30]["_id"],
                    "title": f"t{n}",
                    "notes": ["a", "b"][: n % 3],
                }
                for n in range(300)
            ]
        )
        await w.mongo["comments"].insert_many([{"task": n % 300, "n": n} for n in range(300)])
        await w.mongo["countries"].insert_many([{"_id": code, "name": code} for code in ("de", "fr")])
        await w.mongo["settings"].insert_one({"_id": "theme", "value": "dark"})
        await w.start("publish", "publish")
        await w.start("apply", "apply")
        await w.settled()
        # Children first, the grandchild before all.
        await w.mongo["comments"].insert_one({"_id": "early", "task": "later"})
        parked = "SELECT count(*) FROM crossfade.dead_letter WHERE state = 'parked' AND kind = 'parent'"
        await w.until_value(parked, 1)
        await w.mongo["tasks"].insert_one({"_id": "later", "projectId": "new", "notes": ["n"]})
        await w.until_value(parked, 2)
        assert await w.value("SELECT count(*) FROM tasks WHERE title IS NULL") == 0
        await w.mongo["projects"].insert_one({"_id": "new", "owner": "someone new"})
        await w.settled()
        await w.mongo["tasks"].insert_one({"_id": "orphan", "projectId": "never"})
        await w.until_value(parked, 1)
        await w.mongo["countries"].update_one({"_id": "de"}, {"$set": {"name": "Germany"}})
        await w.mongo["settings"].delete_one({"_id": "theme"})
        await w.mongo["settings"].insert_one({"_id": "lang", "value": "en"})
        beat = "SELECT count(*) FROM countries WHERE name = 'Germany'"
        await w.until_value(beat, 1)
        await w.until_value("SELECT count(*) FROM settings WHERE value = 'en'", 1)
        assert await w.unequal() == []
        house = row_id("house")
        assert await tenants_of(w, "settings") == {house: 1}
        new = row_id("someone new")
        own = {row_id(f"owner {n}"): 10 for n in range(3)} | {new: 1}
        assert await tenants_of(w, "projects") == own
        assert await tenants_of(w, "comments") == {t: n * 10 if n > 1 else 1 for t, n in own.items()}
        assert (await tenants_of(w, "notes"))[new] == 1
        mixed = """SELECT count(*) FROM tasks t JOIN projects p ON p.id = t.project_id
                   WHERE p.tenant_id <> t.tenant_id"""
        assert await w.value(mixed) == 0
        assert await w.value(parked) == 1
        assert await w.value("SELECT count(*) FROM crossfade.partition_progress") >= 5 * PARTITIONS

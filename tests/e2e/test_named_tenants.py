"""Tenants that are told by a database's or collection's name, by the parent document, or by nobody."""

from __future__ import annotations

import asyncio
import urllib.request
from pathlib import Path
from typing import Any

import bson
import pytest
from bson import ObjectId

from tests.support.named import (
    collection,
    fill,
    ids,
    named,
    order,
    tenants_of,
    writing,
)
from tests.support.tables import target
from tests.support.world import PARTITIONS, once, world
from worker import failpoints
from worker.embedded import Services
from worker.embedded.state import free_port
from worker.mapping import row_id


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


async def test_one_pair_of_topics_one_line_of_status_and_labels_for_all_tenants(
    services: Services, tmp_path: Path
) -> None:
    async with named(services, tmp_path, "database") as w:
        for tenant in "ab":
            await fill(
                w.client[f"{w.name}_{tenant}"]["customers"], w.client[f"{w.name}_{tenant}"]["orders"], 9
            )
        code, told = await once(w, "topics", "create")
        assert code == 0 and len(told.splitlines()) == 6, told
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


async def test_a_dropped_database_of_one_tenant_takes_that_tenants_rows_along(
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
        assert await tenants_of(w, "orders") == {row_id("b"): 9}
        assert await w.unequal() == []
        await fill(w.client[f"{w.name}_a"]["customers"], w.client[f"{w.name}_a"]["orders"], 3)
        await w.settled()
        assert await tenants_of(w, "orders") == {row_id("a"): 3, row_id("b"): 9}


@pytest.mark.parametrize("by", ["database", "collection"])
async def test_a_collection_renamed_into_place_is_told_and_copied(
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
        await w.until("told", lambda: "another was renamed to it" in log.read_text())
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


async def test_documents_follow_when_the_parent_that_tells_their_tenant_moves(
    services: Services, tmp_path: Path
) -> None:
    tables = target(tmp_path / "work", PARENT_TABLES)
    async with world(services, tmp_path, BY_PARENT, tables) as w:
        projects = [{"_id": f"p{n}", "owner": "before"} for n in range(40)]
        await w.mongo["projects"].insert_many(projects)
        await w.mongo["tasks"].insert_many(
            [{"_id": n, "projectId": f"p{n}", "notes": ["a"]} for n in range(40)]
        )
        await w.mongo["comments"].insert_many([{"_id": n, "task": n} for n in range(40)])
        await w.mongo["countries"].insert_one({"_id": "de"})
        await w.mongo["settings"].insert_one({"_id": "theme"})
        await w.start("publish", "publish")
        await w.start("apply", "apply")
        await w.start("apply", "apply too")
        await w.settled()
        for n in range(40):  # topics are not in step: the task's change may be applied before the move
            await w.mongo["projects"].update_one({"_id": f"p{n}"}, {"$set": {"owner": "after"}})
            await w.mongo["tasks"].update_one({"_id": n}, {"$set": {"title": "changed"}})
        for table in ("projects", "tasks", "notes", "comments"):
            wanted = f"SELECT count(*) FROM {table} WHERE tenant_id = '{row_id('after')}'"
            await w.until_value(wanted, 40)
        await w.settled()
        assert await w.unequal() == []
        for table in ("projects", "tasks", "notes", "comments"):
            assert await tenants_of(w, table) == {row_id("after"): 40}

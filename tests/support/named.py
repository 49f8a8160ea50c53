"""A shop whose tenants are told by a database's or a collection's name."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any
from uuid import UUID

from bson import ObjectId

from tests.support.tables import target
from tests.support.world import World, world
from worker.embedded import Services

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

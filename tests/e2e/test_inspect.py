"""`crossfade inspect` on databases that it has never seen: what it drafts is accepted, copied and rebuilt."""

from __future__ import annotations

import asyncio
import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import asyncpg
import bson
import pytest
from asyncpg import UniqueViolationError
from bson import Binary
from bson.raw_bson import RawBSONDocument

from tests.support import shapes
from tests.support.world import World, world
from worker.embedded import Services
from worker.mapping import load

# Nothing is mapped yet when a world is made.
UNMAPPED = "version: 1\ndatabase: NAME\ncollections: {x: {table: x, tenant: null, rest: rest, columns: {}}}\n"


async def inspect(w: World, *arguments: str, **env: str) -> tuple[int, str, str]:
    """Run the command with MongoDB's connection string alone."""
    process = await asyncio.create_subprocess_exec(
        sys.executable,
        *("-m", "worker", "inspect", *arguments),
        env={"PATH": w.env["PATH"], "CROSSFADE_MONGO_URI": w.services.mongo_uri} | env,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
    )
    out, err = await asyncio.wait_for(process.communicate(), 120)
    assert process.returncode is not None
    return process.returncode, out.decode(), err.decode()


async def drafted(w: World, *arguments: str) -> Path:
    """Draft mapping and tables, and take them for the world's."""
    folder = w.directory / "draft"
    code, _, err = await inspect(w, "--database", w.name, "--out", str(folder), *arguments)
    assert code == 0, err
    w.mapping_file.write_text((folder / "mapping.yaml").read_text())
    process = await asyncio.create_subprocess_exec(
        sys.executable,
        *("-m", "worker", "schema", "apply", "--target", str(folder / w.name)),
        env=w.env | {"CROSSFADE_POSTGRES_ADMIN_DSN": w.services.dsn("postgres", w.name)},
        stderr=asyncio.subprocess.PIPE,
    )
    _, told = await asyncio.wait_for(process.communicate(), 60)
    assert process.returncode == 0, told.decode()
    return folder


Shape = Callable[[], shapes.Database]


@pytest.mark.parametrize(
    ("shape", "arguments"),
    [
        (shapes.shop, ("--tenant-path", "tenantId")),
        (shapes.blog, ("--tenant-path", "site.org")),
        (shapes.telemetry, ("--tenant", "devices=owner", "--tenant", "readings=-")),
    ],
    ids=["shop", "blog", "telemetry"],
)
@pytest.mark.parametrize(("role", "size"), [("auto", "2000"), ("origin", "20")])
async def test_a_draft_is_accepted_copied_and_rebuilt_with_no_hand_edit(
    services: Services, tmp_path: Path, shape: Shape, arguments: tuple[str, ...], role: str, size: str
) -> None:
    async with world(services, tmp_path, UNMAPPED, target=None) as w:
        content = shape()
        await shapes.load(w.mongo, content)
        await drafted(w, *arguments, "--sample", size)
        code, out, err = await inspect(w, "--check", "--json", CROSSFADE_MAPPING=str(w.mapping_file))
        assert code == 0, err
        assert json.loads(out)["fits"] and json.loads(out)["missing_collections"] == []
        await w.start("publish", "publish")
        await w.start("apply", "apply", CROSSFADE_REPLICATION_ROLE=role)
        await w.settled()
        assert await w.value("SELECT count(*) FROM crossfade.dead_letter WHERE state <> 'healed'") == 0
        assert await w.unequal() == []
        rows = sum([await w.value(f'SELECT count(*) FROM "{one.table}"') for one in maps(w).values()])
        assert rows == sum(map(len, content.values()))


def maps(w: World) -> dict[str, Any]:
    return load(w.mapping_file).collections


async def test_what_cannot_be_migrated_is_named_and_indexes_hold_in_postgresql(
    services: Services, tmp_path: Path
) -> None:
    async with world(services, tmp_path, UNMAPPED, target=None) as w:
        await shapes.load(w.mongo, shapes.shop())
        customers, orders, products = (w.mongo[name] for name in ("customers", "orders", "products"))
        ci = {"locale": "en", "strength": 2}
        await customers.create_index([("tenantId", 1), ("email", 1)], unique=True, collation=ci)
        await customers.create_index("phone", sparse=True)
        await products.create_index([("tenantId", 1), ("sku", -1)], unique=True)
        await products.create_index("labels")
        await products.create_index("attributes.red")
        await orders.create_index("number", unique=True, partialFilterExpression={"number": {"$gt": 5}})
        await orders.create_index("orderedAt", expireAfterSeconds=10**9)
        await orders.create_index("lines.productId")
        await orders.create_index([("ship-to.street", "text")])
        await orders.create_index([("place", "2dsphere")])
        await orders.create_index([("_id", "hashed")])
        await orders.create_index([("$**", 1)])
        await w.mongo.create_collection("recent", capped=True, size=10_000)
        await w.mongo.create_collection("checked", validator={"x": {"$exists": True}})
        await w.mongo.create_collection("secret")
        await w.mongo["secret"].insert_one({"card": Binary(b"ciphertext", 6)})
        await w.mongo.command("create", "cheap", viewOn="products", pipeline=[])
        await w.mongo.command("create", "metrics", timeseries={"timeField": "at"})
        await w.mongo["fs.files"].insert_one({})
        await w.mongo["fs.chunks"].insert_one({})
        await w.mongo["not a topic"].insert_one({})

        await drafted(w)  # no tenant path either: tenantId says it
        code, out, _ = await inspect(w, "--database", w.name, "--json")
        assert code == 0
        told = json.loads(out)
        assert told["tenant_candidates"][0]["path"] == "tenantId"
        assert told["tenant_candidates"][0]["refers_to"] == "tenants"
        assert told["collections"]["orders"]["fields"]["customerId"]["refers_to"]["collection"] == "customers"
        unsupported = {(one["collection"], one["what"]) for one in told["unsupported"]}
        assert unsupported == {
            ("orders", "expiry (TTL) of index orderedAt_1"),
            ("orders", "index ship-to.street_text"),
            ("orders", "index place_2dsphere"),
            ("orders", "index _id_hashed"),
            ("orders", "index $**_1"),
            ("recent", "capped collection"),
            ("checked", "validator"),
            ("secret", "fields encrypted by the client"),
            ("cheap", "view"),
            ("metrics", "time-series collection"),
            ("fs.files", "GridFS bucket"),
            ("fs.chunks", "GridFS bucket"),
            ("not a topic", "name"),
        }
        text = w.mapping_file.read_text()
        assert all(f"{collection}, {what}: " in text for collection, what in unsupported)
        tenants = {name: one.tenant and one.tenant.path for name, one in maps(w).items()}
        assert tenants["tenants"] == "_id" and tenants["orders"] == "tenantId" and tenants["checked"] is None

        await w.start("publish", "publish")
        await w.start("apply", "apply")
        await w.settled()
        assert await w.unequal() == []
        # The embedded PostgreSQL has no ICU, so its collation is by code points.
        same = "SELECT count(*) FROM customers WHERE email = 'customer1@Example.com' COLLATE"
        assert await w.value(f"{same} en_u_ks_level2_ci") == 1
        with pytest.raises(UniqueViolationError):
            await w.value("INSERT INTO products (tenant_id, sku) SELECT tenant_id, sku FROM products LIMIT 1")
        walled = "SELECT count(*) FROM pg_class WHERE relrowsecurity AND relforcerowsecurity"
        assert await w.value(f"{walled} AND relnamespace = 'public'::regnamespace") == 6
        deferrable = "SELECT count(*) FROM pg_constraint WHERE contype = 'f' AND NOT condeferrable"
        assert await w.value(f"{deferrable} AND connamespace = 'public'::regnamespace") == 0


async def test_a_tenant_sees_its_own_rows_alone(services: Services, tmp_path: Path) -> None:
    async with world(services, tmp_path, UNMAPPED, target=None) as w:
        await shapes.load(w.mongo, shapes.blog())
        await drafted(w, "--tenant-path", "site.org")
        await w.start("publish", "publish")
        await w.start("apply", "apply")
        await w.settled()
        tenant = await w.value("SELECT tenant_id FROM posts LIMIT 1")
        connection = await asyncpg.connect(services.dsn("application_role", w.name))
        try:
            assert await connection.fetchval("SELECT count(*) FROM post_comment_replies") == 0
            await connection.execute("SELECT set_config('app.current_tenant_id', $1, false)", str(tenant))
            seen = await connection.fetch("SELECT DISTINCT tenant_id FROM post_comment_replies")
            assert [row["tenant_id"] for row in seen] == [tenant]
            other = await w.value("SELECT id FROM posts WHERE tenant_id <> $1 LIMIT 1", tenant)
            with pytest.raises(asyncpg.InsufficientPrivilegeError):
                await connection.execute(
                    "INSERT INTO post_comments (post_id, position, tenant_id) VALUES ($1, 99, $2)",
                    other,
                    tenant,
                )
        finally:
            await connection.close()


CHECKED = """
version: 1
database: NAME
collections:
  orders:
    table: orders
    tenant: {path: tenantId, column: tenant_id}
    rest: rest
    ignore: [dueOn]
    columns:
      total: {type: numeric, required: true}
      status: {type: boolean}
    children:
      lines:
        table: lines
        parent: order_id
        position: position
        tenant: tenant_id
        rest: rest
        columns: {quantity: {type: integer}, price: {type: text}}
        ignore: [options]
  recent:
    table: recent
    tenant: null
    rest: rest
    columns: {}
  customer:
    table: customer
    tenant: null
    rest: rest
    columns: {}
"""


async def test_a_check_tells_what_would_not_fit_and_no_value(services: Services, tmp_path: Path) -> None:
    async with world(services, tmp_path, CHECKED, target=None) as w:
        content = shapes.shop()
        await shapes.load(w.mongo, content)
        await w.mongo.create_collection("recent", capped=True, size=10_000)
        lost = content["orders"][0]["_id"]
        await w.mongo["orders"].update_one({"_id": lost}, {"$unset": {"tenantId": 1}})
        await w.mongo["orders"].update_one(
            {"_id": content["orders"][1]["_id"]}, {"$set": {"total": "s3cret total"}}
        )
        broken = bson.encode({"_id": 1, "s": "a"}).replace(b"a\0\0", b"\xff\0\0")
        await w.mongo["orders"].insert_one(RawBSONDocument(broken))
        await w.mongo["orders"].insert_one({"_id": {"a": 1}, "tenantId": lost, "total": "s3cret total"})
        code, out, err = await inspect(w, "--check", str(w.mapping_file), "--sample", "all", "--json")
        assert code == 1 and "s3cret" not in out + err
        told = json.loads(out)
        assert not told["fits"] and told["missing_collections"] == [
            {"collection": "customer", "nearest": f"{w.name}.customers"}
        ]
        assert f"{w.name}.products" in told["unmapped_collections"]
        (unsupported,) = told["unsupported"]
        assert unsupported["collection"] == f"{w.name}.recent" and unsupported["what"] == "capped collection"
        (orders,) = told["collections"]
        assert orders["documents"] == len(content["orders"]) + 2 and orders["whole"]
        letters = {letter["kind"]: letter for letter in orders["dead_letters"]}
        assert letters["tenant"]["count"] == 1 and letters["tenant"]["examples"] == [{"$oid": str(lost)}]
        assert letters["envelope"]["count"] == 1
        assert letters["mapping"]["count"] == 2 and "total" in letters["mapping"]["reason"]
        assert {"a": {"$numberInt": "1"}} in letters["mapping"]["examples"]
        fitting = content["orders"][2:]
        noted = {(one["path"], one["type"]): one["count"] for one in orders["noted"]}
        assert noted["status", "string"] == len(fitting)
        assert noted["total", "double"] == sum(type(one["total"]) is float for one in fitting)
        lines = [line for one in fitting for line in one["lines"] or []]
        assert noted["lines[].price", "decimal"] == sum(type(line) is dict for line in lines)
        assert noted["lines[].$", "string"] == lines.count("a gift")
        unmapped = {(one["path"], one["type"]): one["count"] for one in orders["unmapped"]}
        assert unmapped["customerId", "objectId"] == len(fitting)
        assert unmapped["ship-to.street", "string"] == len(fitting)
        ignored = {one["path"]: one["count"] for one in orders["ignored"]}
        assert ignored["dueOn"] >= len(fitting) - 1 and ignored["lines[].options"] > 0

        code, out, err = await inspect(w, "--check", str(w.mapping_file), "--collection", "orders")
        assert code == 1 and "dead letter (tenant): 1" in out and str(lost) in out
        assert "s3cret" not in out + err


async def test_a_check_looks_at_every_tenants_database(services: Services, tmp_path: Path) -> None:
    one = "{table: x, tenant: {name: database, column: tenant_id}, rest: rest, columns: {n: {type: integer}}}"
    mapping = f"version: 1\ndatabase: NAME_{{tenant}}\ncollections: {{things: {one}}}\n"
    async with world(services, tmp_path, mapping, target=None) as w:
        for tenant, n in (("one", 1), ("two", "x")):
            await w.client[f"{w.name}_{tenant}"]["things"].insert_one({"n": n})
        await w.client[f"other{w.name}"]["things"].insert_one({"n": 5})
        code, out, err = await inspect(w, "--check", str(w.mapping_file), "--json")
        await w.client.drop_database(f"other{w.name}")
        assert code == 0, err
        told = {one["collection"]: one["noted"] for one in json.loads(out)["collections"]}
        noted = {"path": "n", "type": "string", "count": 1}
        assert told == {f"{w.name}_one.things": [], f"{w.name}_two.things": [noted]}


REFUSED: list[tuple[tuple[str, ...], str]] = [
    (("--database", "NAMEx"), "did you mean NAME?"),
    (("--database", "local"), "system"),
    ((), "--database"),
    (("--database", "NAME", "--collection", "order"), "did you mean orders?"),
    (("--database", "NAME", "--tenant-path", "nope"), "nope"),
    (("--database", "NAME", "--tenant", "orders=nope"), "nope"),
    (("--database", "NAME", "--tenant", "orders"), "COLLECTION=PATH"),
    (("--check", "nowhere.yaml"), "nowhere.yaml"),
    (("--check",), "CROSSFADE_MAPPING"),
    (("--check", "x.yaml", "--out", "y"), "--check"),
]


async def test_what_inspect_cannot_do_is_one_clear_line_and_exit_2(
    services: Services, tmp_path: Path
) -> None:
    async with world(services, tmp_path, UNMAPPED, target=None) as w:
        await w.mongo["orders"].insert_one({"x": 1})
        for arguments, told in REFUSED:
            code, out, err = await inspect(w, *(one.replace("NAME", w.name) for one in arguments))
            *progress, line = err.splitlines()
            assert code == 2 and out == "" and "Traceback" not in err, arguments
            assert all(one.startswith("inspect: ") for one in progress)
            assert told.replace("NAME", w.name) in line


async def test_a_draft_is_not_written_over_another_unless_forced(services: Services, tmp_path: Path) -> None:
    async with world(services, tmp_path, UNMAPPED, target=None) as w:
        await w.mongo["orders"].insert_one({"x": 1})
        await drafted(w)
        again = ("--database", w.name, "--out", str(tmp_path / "draft"))
        code, _, err = await inspect(w, *again)
        assert code == 2 and "--force" in err
        assert (await inspect(w, *again, "--force"))[0] == 0


async def test_without_mongodb_it_says_so(services: Services, tmp_path: Path) -> None:
    async with world(services, tmp_path, UNMAPPED, target=None) as w:
        uri = "mongodb://user:s3cret@127.0.0.1:9/?serverSelectionTimeoutMS=500"
        code, _, err = await inspect(w, "--database", "x", CROSSFADE_MONGO_URI=uri)
        assert code == 2 and "127.0.0.1:9" in err and "s3cret" not in err
